"""The end of a daemon: what runs may finish, what waits is the next one's, and the card says so."""

from __future__ import annotations

import pytest

from edged.core.events import Drain, Leave, Stop
from tests.core.world import World


def test_drain_refuses_what_comes_lets_running_ones_finish_and_keeps_what_waits() -> None:
    world = World(parallel=1)
    world.request("runs")
    world.request("waits", "waits")
    world.tell(Drain(20))
    world.request("late")
    assert world.reply("late")[-1]["error"]["code"] == "draining"
    assert not any(isinstance(e, Stop) for e in world.effects)
    world.finish(world.generated[0].uid)

    assert world.reply("runs")[-1]["finish_reason"] == "stop"
    assert sum(isinstance(e, Stop) for e in world.effects) == 1
    assert [s["state"] for s in world.on("status")][-2:] == ["draining", "offline"]
    assert [message["type"] for message in world.reply("waits")] == ["accepted"]
    later = World(before=world, boot=8)
    assert later.generated[0].messages == (("user", "waits"),)


@pytest.mark.parametrize("obeys", [True, False])
def test_drain_cancels_after_the_grace_period_even_an_engine_that_does_not_listen(*, obeys: bool) -> None:
    world = World()
    world.request("r")
    uid = world.generated[0].uid
    world.tell(Drain(20))
    world.wait(20.1)
    assert world.cancelled == [uid]
    if obeys:
        world.finish(uid, "cancelled")
    else:
        world.wait(5)

    assert world.reply()[-1]["finish_reason"] == "cancelled"
    assert sum(isinstance(e, Stop) for e in world.effects) == 1


def test_to_leave_at_once_is_said_and_what_runs_is_the_next_daemons() -> None:
    world = World(parallel=1)
    world.request("runs")
    world.say(world.generated[0].uid, "Once ")
    world.request("waits", "waits")
    world.tell(Drain(20))
    world.say(world.generated[0].uid, "upon ")
    for _ in range(2):
        world.tell(Leave())
    said = len(world.reply("runs"))
    assert world.core.wake_at() == 1100, "nothing but the deadline is due any more"
    for _ in range(20):
        world.say(world.generated[0].uid, "more ")
        world.wait(0.05)
    world.request("late")
    world.wait(60)

    assert len(world.reply("runs")) == said, "it has gone"
    assert sum(isinstance(e, Stop) for e in world.effects) == 1
    assert [s["state"] for s in world.on("status")][-2:] == ["draining", "offline"]
    assert world.cancelled == []
    assert world.reply("late")[-1]["error"]["code"] == "draining"
    later = World(before=world, boot=8)
    assert [order.generated for order in later.generated] == [(0,), ()]
