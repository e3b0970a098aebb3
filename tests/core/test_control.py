"""`pause` and `resume`, control messages that overtake their request, and answers that do not get away."""

from __future__ import annotations

import pytest

from edged.core.events import BrokerConnected, BrokerDisconnected, Hold, Release
from tests.core.world import World


def held(world: World) -> list[str]:
    return [type(effect).__name__ for effect in world.effects if isinstance(effect, Hold | Release)]


def test_pause_holds_the_engine_and_resume_lets_it_go_on() -> None:
    world = World()
    world.request("r", {"prompt": "x", "progress": True})
    world.wait(1)
    world.ctl("r", "pause")
    world.ctl("r", '{"op":"pause"}')
    assert held(world) == ["Hold"]
    world.wait(1)
    world.ctl("r", "resume")
    world.ctl("r", "resume")
    assert held(world) == ["Hold", "Release"]
    phases = [m["phase"] for m in world.reply() if m["type"] == "progress"]
    assert phases[-2:] == ["paused", "resumed"]


def test_a_pause_ends_by_itself() -> None:
    world = World(max_pause_s=30.0)
    world.request("r", "x")
    world.ctl("r", "pause")
    world.wait(29)
    assert held(world) == ["Hold"]
    world.wait(1.1)
    assert held(world) == ["Hold", "Release"]


def test_the_deadline_runs_on_in_a_pause() -> None:
    world = World()
    world.request("r", {"prompt": "x", "timeout_s": 10})
    world.ctl("r", "pause")
    world.wait(10.1)
    assert world.cancelled == [world.generated[0].uid]


def test_a_request_that_waits_can_be_paused_and_stays_so_through_the_death_of_engines() -> None:
    world = World(parallel=1)
    world.request("first", "1")
    world.request("r", "x")
    world.ctl("r", "pause")
    assert held(world) == []
    world.finish(world.generated[0].uid)
    assert held(world) == ["Hold"]
    world.lose(outside=True)
    world.ready()
    assert held(world) == ["Hold", "Hold"]
    world.ctl("r", "cancel")
    world.finish(world.generated[-1].uid, "cancelled")
    assert world.reply()[-1]["finish_reason"] == "cancelled"


@pytest.mark.parametrize("op", ["cancel", "pause", "resume"])
@pytest.mark.parametrize("confirms", [True, False])
def test_what_crosses_the_final_adds_nothing_to_it(op: str, *, confirms: bool) -> None:
    world = World()
    world.request("r", "x")
    world.confirms = confirms
    world.finish(world.generated[0].uid)
    before = world.reply()
    assert before[-1]["finish_reason"] == "stop"
    world.ctl("r", op)
    world.wait(5)
    assert world.reply() == before


def test_a_cancel_that_overtakes_its_request_takes_effect() -> None:
    world = World()
    world.ctl("r", "cancel")
    world.wait(1)
    world.request("r", "x")
    assert world.reply()[-1]["finish_reason"] == "cancelled"
    assert not world.generated
    world.wait(5)
    assert len(world.reply()) == 2


@pytest.mark.parametrize("later", ["pause", "resume"])
def test_a_cancel_that_waits_for_its_request_is_not_replaced(later: str) -> None:
    world = World()
    world.ctl("r", "cancel")
    world.ctl("r", later)
    world.request("r", "x")
    assert world.reply()[-1]["finish_reason"] == "cancelled"
    assert not world.generated


def test_a_pause_that_waits_for_its_request_is_replaced_by_what_comes_later() -> None:
    world = World()
    for id_, later in (("resumed", "resume"), ("cancelled", "cancel")):
        world.ctl(id_, "pause")
        world.ctl(id_, later)
        world.request(id_, "x")
    assert held(world) == []
    assert world.reply("cancelled")[-1]["finish_reason"] == "cancelled"


def test_a_flood_of_cancels_for_nobody_is_bounded_and_answered() -> None:
    world = World()
    for number in range(1000):
        world.ctl(f"r{number}", "cancel")
    assert sum(bool(world.reply(f"r{number}")) for number in range(1000)) == 1000 - 256
    world.wait(2.1)
    assert all(world.reply(f"r{number}")[0]["error"]["code"] == "unknown_request" for number in range(1000))


def test_an_answer_that_does_not_get_away_is_held_and_goes_on_later() -> None:
    world = World()
    world.request("r", "x")
    uid = world.generated[0].uid
    world.say(uid, "first ")
    world.tell(BrokerDisconnected("cut"))
    sent = len(world.reply())
    said = "first "
    while "Hold" not in held(world):
        world.say(uid, "x" * 1000)
        said += "x" * 1000
        world.wait(0.1)
        assert len(said) < 200_000, "it goes on for ever"
    assert len(said) > 60_000
    assert len(world.reply()) == sent
    world.tell(BrokerConnected())
    world.wait(1)
    assert held(world) == ["Hold", "Release"]
    world.finish(uid)
    assert world.text() == said


def test_nothing_new_is_begun_while_too_much_waits_for_the_broker() -> None:
    world = World(parallel=1, max_queue=20, max_queue_per_client=20)
    for number in range(21):
        world.request(f"r{number}", "x")
    world.tell(BrokerDisconnected("cut"))
    for _ in range(50):
        if world.generated and not world.reply(f"r{len(world.generated) - 1}")[1:]:
            world.finish(world.generated[-1].uid)
    assert len(world.generated) <= 21
    world.tell(BrokerConnected())
    for _ in range(50):
        if world.generated:
            world.finish(world.generated[-1].uid)
    finals = [world.reply(f"r{number}")[-1]["type"] for number in range(21)]
    assert finals == ["final"] * 21


def test_chunks_fit_into_what_the_broker_takes() -> None:
    world = World()
    world.tell(BrokerConnected(maximum_packet=4096))
    world.request("r", {"prompt": "x", "include_text": True})
    uid = world.generated[0].uid
    for _ in range(200):
        world.say(uid, "\x01" * 50)
    world.finish(uid)
    assert max(len(p.payload) for p in world.published if p.topic.endswith("/reply/r")) < 4096
    assert world.text() == "\x01" * 10_000


def test_an_answer_in_one_piece_that_the_broker_does_not_take_is_an_error() -> None:
    world = World()
    world.tell(BrokerConnected(maximum_packet=4096))
    world.request("r", "x", kind="ask")
    world.say(world.generated[0].uid, "x" * 5000)
    world.finish(world.generated[0].uid)
    [final] = world.reply()
    assert (final["error"]["code"], final["chars"]) == ("too_large", 5000)


def test_a_control_message_is_acknowledged_whatever_requests_wait_for() -> None:
    world = World()
    world.syncs = False
    world.request("r", "x")
    ack = world.request("r", "cancel", kind="ctl")
    assert world.acked == [ack]
    world.tell(BrokerDisconnected("cut"))
    assert world.request("r", "cancel", kind="ctl") in world.acked


def test_the_queue_is_bounded_while_nothing_is_begun_although_there_are_places() -> None:
    world = World(parallel=2, max_queue=3, max_queue_per_client=3)
    world.confirms = False
    for number in range(20):
        world.request(f"r{number}", "x")
        if len(world.generated) == number + 1:
            world.finish(world.generated[-1].uid)
    codes = [m["error"]["code"] for number in range(20) for m in world.reply(f"r{number}") if "error" in m]
    assert len(world.core._parts.queue) <= 3
    assert set(codes) == {"overloaded"}
