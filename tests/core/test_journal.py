"""Nothing is published before it is written, nothing is accepted before it is safe, and a full disk loses nothing."""

from __future__ import annotations

import pytest

from edged.core.events import Cancel, Generate, Published, Record, Synced, Tick
from tests.core.world import World


def test_a_request_is_acknowledged_and_told_so_when_it_is_safe() -> None:
    world = World()
    world.syncs = False
    ack = world.request("r", "x")
    assert (world.acked, world.reply()) == ([], [])
    assert world.generated, "it is begun meanwhile"
    number = max(effect.number for effect in world.effects if isinstance(effect, Record))
    world.tell(Synced(number))
    assert world.acked == [ack]
    assert [m["type"] for m in world.reply()] == ["accepted"]


def test_acknowledgements_leave_in_the_order_of_arrival() -> None:
    world = World()
    world.syncs = False
    acks = [world.request("a", "x"), world.request("b", ""), world.request("c", "y")]
    assert world.acked == []
    world.tell(Synced(10))
    assert world.acked == acks


def test_an_answer_that_is_faster_than_the_disk_waits_for_it() -> None:
    world = World()
    world.syncs = False
    world.request("r", "x")
    world.say(world.generated[0].uid, "done")
    world.finish(world.generated[0].uid)
    assert world.reply() == []
    world.tell(Synced(10))
    assert [m["type"] for m in world.reply()] == ["accepted", "chunk", "final"]


def test_while_the_disk_is_full_nothing_is_accepted_and_afterwards_all_is_well() -> None:
    world = World()
    world.memory.full = "the disk is full"
    ack = world.request("r", "x")
    final = world.reply()[-1]
    assert (final["gen"], final["error"]["code"]) == (0, "unavailable")
    assert final["error"]["retry_after_ms"] > 0
    assert "the disk is full" not in final["error"]["message"], "that is the operator's, with its paths"
    assert world.acked == [ack]
    assert world.cancelled == [g.uid for g in world.generated]
    world.request("s", "x")
    assert world.reply("s")[-1]["error"]["code"] == "unavailable"
    assert len(world.logged("the journal cannot be written: nothing is accepted, answers wait")) == 1
    world.memory.full = None
    world.wait(1.1)
    world.request("t", "x")
    assert world.reply("t")[-1]["type"] == "accepted"
    assert len(world.logged("the journal can be written again")) == 1


def test_answers_wait_while_the_disk_is_full_and_nothing_of_them_is_lost() -> None:
    world = World()
    world.request("r", "x")
    uid = world.generated[0].uid
    world.say(uid, "one ")
    world.memory.full = "the disk is full"
    said = len(world.reply())
    for number in range(50):
        world.say(uid, f"{number} ")
        world.wait(0.2)
    world.finish(uid)
    assert len(world.reply()) == said
    world.memory.full = None
    world.wait(1.1)
    assert world.text() == "one " + "".join(f"{number} " for number in range(50))
    assert World(before=world).generated == []


def test_a_request_whose_safety_is_uncertain_is_not_accepted() -> None:
    world = World()
    world.syncs = False
    ack = world.request("r", "x")
    world.tell(Synced(10, "input/output error"))
    assert world.acked == [ack]
    assert world.reply()[-1]["error"]["code"] == "unavailable"
    world.wait(1.1)
    later = World(before=world)
    assert (later.generated, later.reply()) == ([], [])
    later.request("r", "x")
    assert later.reply()[-1]["type"] == "accepted"


@pytest.mark.parametrize("code", [0x87, 0x90, 0x95])
def test_an_answer_that_the_broker_refuses_ends_with_a_line_in_the_log(code: int) -> None:
    world = World()
    world.confirms = False
    world.request("r", "x")
    world.tell(Published(_token(world), code))
    [line] = world.logged("broker takes no answer there: given up")
    assert (line["id"], line["reason_code"]) == ("r", code)
    assert world.cancelled == [world.generated[0].uid]
    world.finish(world.generated[0].uid, "cancelled")
    world.wait(100)
    assert len(world.reply()) == 1
    later = World(before=world)
    assert (later.reply(), later.generated) == ([], [])


def test_an_answer_that_the_broker_has_no_room_for_comes_again_in_order() -> None:
    world = World()
    world.confirms = False
    world.request("r", "x")
    world.say(world.generated[0].uid, "all")
    world.finish(world.generated[0].uid)
    tokens = [p.token for p in world.published if p.topic.endswith("/reply/r")]
    assert [m["seq"] for m in world.reply()] == [0, 1, 2]
    world.tell(Published(tokens[0], 0x10))
    world.tell(Published(tokens[1], 0x97))
    world.tell(Published(tokens[2], 0x00))
    assert len(world.reply()) == 3
    world.confirms = True
    world.wait(1.1)
    assert [m["seq"] for m in world.reply()] == [0, 1, 2, 1, 2]
    assert World(before=world).reply() == []


def test_a_broker_that_never_has_room_is_given_up() -> None:
    world = World()
    world.confirms = False
    world.request("r", "x")
    world.finish(world.generated[0].uid)
    answered = 0
    for _ in range(20):
        sent = [p.token for p in world.published if p.topic.endswith("/reply/r")]
        for token in sent[answered:]:
            world.tell(Published(token, 0x97))
        answered = len(sent)
        world.wait(61)
    assert len(world.logged("broker takes no answer there: given up")) == 1
    assert len(world.reply()) < 40


def _token(world: World) -> object:
    return next(p.token for p in world.published if p.topic.endswith("/reply/r"))


def test_what_is_let_go_by_the_disk_goes_before_what_was_said_meanwhile() -> None:
    world = World()
    world.syncs = False
    world.request("r", "x")
    uid = world.generated[0].uid
    world.say(uid, "one ")
    world.time += 1  # the next chunk is due, and is said with whatever happens next
    world.core._parts.fleet["m"].running[uid].add("two ", (1,), world.now)
    world.tell(Synced(10))
    assert [m["seq"] for m in world.reply()] == [0, 1, 2]


def test_a_request_that_cannot_be_recorded_lets_no_other_ones_acknowledgement_go() -> None:
    world = World()
    world.syncs = False
    first = world.request("a", "x")
    world.memory.full = "the disk is full"
    second = world.request("b", "y")
    assert world.acked == [], "the first one is not safe yet"
    world.tell(Synced(10))
    assert world.acked == [first, second]


def test_an_engine_is_given_nothing_that_was_not_recorded() -> None:
    world = World()
    world.memory.full = "the disk is full"
    world.request("r", "x")
    orders = [type(effect).__name__ for effect in world.effects if isinstance(effect, Generate | Cancel)]
    assert orders == ["Generate", "Cancel"]


def test_an_answer_to_a_request_that_was_not_accepted_is_never_sent_again() -> None:
    world = World()
    world.syncs = False
    world.request("r", "x")
    world.finish(world.generated[0].uid)
    world.tell(Synced(10, "input/output error"))
    world.memory.full = "input/output error"
    world.request("r", "x")
    assert [m["error"]["code"] for m in world.reply()] == ["unavailable"] * 2


def test_what_waited_for_the_disk_begins_when_there_is_room() -> None:
    world = World(parallel=1)
    for path in ("first", "second", "third"):
        world.request(path, "x")
    world.memory.full = "the disk is full"
    for number in range(2):
        world.finish(world.generated[number].uid)
    assert len(world.generated) == 2
    world.memory.full, world.confirms, world.syncs = None, False, False
    while not world.logged("the journal can be written again"):
        world.time = world.core.wake_at() or world.time
        world.tell(Tick())
    assert len(world.generated) == 3, "nothing else may ever happen"
