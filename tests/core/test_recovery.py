"""What an earlier daemon accepted goes on in the next one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.wire.assembly import Reassembler
from tests.core.world import SETTINGS, World


def joined(*worlds: World, path: str = "r") -> Reassembler:
    """What a consumer makes of a reply that several daemons gave."""
    reassembler = Reassembler()
    for world in worlds:
        for published in world.published:
            if published.topic == f"edged/v1/n/reply/{path}":
                reassembler.feed(published.payload)
    return reassembler


def test_a_stream_goes_on_in_its_generation_after_the_daemon_was_killed() -> None:
    world = World()
    world.request("r", "hello")
    for piece in ("Once ", "upon "):
        world.say(world.generated[0].uid, piece)
        world.wait(1)
    later = World(before=world)
    [again] = later.generated
    later.say(again.uid, "a time")
    later.finish(again.uid, completion_tokens=3)

    assert (again.messages, again.generated) == ((("user", "hello"),), (0, 1))
    assert [m["seq"] for m in later.reply()] == [2, 3, 4], "of the last message it is not known whether it arrived"
    assert later.reply()[0] == world.reply()[2]
    assert {m["gen"] for m in later.reply()} == {1}
    result = joined(world, later).result
    assert result is not None
    assert (result.text, result.final.usage.completion_tokens) == ("Once upon a time", 3)  # type: ignore[union-attr]
    metrics = later.reply()[-1]["metrics"]
    assert metrics["resumed"] == 1
    assert metrics["e2e_time_ms"] == pytest.approx(2000)
    assert metrics["time_to_first_token_ms"] == pytest.approx(0)


def test_the_same_seed_and_settings_are_used_again() -> None:
    world = World()
    world.request(
        "r", {"prompt": "x", "stop": ["."], "temperature": 0.3}, correlation=b"c", response_topic="reply/there"
    )
    later = World(before=world)
    assert later.generated[0].sampling == world.generated[0].sampling
    later.finish(later.generated[0].uid)
    final = later.published[-1]
    assert (final.topic, final.properties.correlation) == ("reply/there", b"c")


def test_what_waited_waits_again_and_what_ran_goes_first() -> None:
    world = World(parallel=1)
    for path in ("first", "second", "third"):
        world.request(path, path)
    later = World(before=world, parallel=1)
    for expected in ("first", "second", "third"):
        uid = later.generated[-1].uid
        assert later.running(expected) == uid
        later.finish(uid)
    assert [later.reply(path)[-1]["metrics"]["resumed"] for path in ("first", "second", "third")] == [1, 0, 0]


def test_an_answer_in_one_piece_goes_on_as_well() -> None:
    world = World(flush_tokens=2)
    world.request("r", "hello", kind="ask")
    for i in range(5):
        world.say(world.generated[0].uid, f"{i} ")
    later = World(before=world, flush_tokens=2)
    [again] = later.generated
    assert again.generated == (0, 1, 2, 3)
    later.say(again.uid, "4 ")
    later.finish(again.uid)
    [final] = later.reply()
    assert (final["seq"], final["text"]) == (0, "0 1 2 3 4 ")


def test_messages_that_the_broker_had_not_confirmed_are_sent_again_and_no_others() -> None:
    world = World()
    world.request("r", "hello")
    uid = world.generated[0].uid
    world.say(uid, "one ")
    world.confirms = False
    for piece in ("two ", "three "):
        world.wait(1)
        world.say(uid, piece)
    world.wait(1)
    later = World(before=world)
    assert [m["seq"] for m in later.reply()] == [2, 3]
    assert later.reply() == world.reply()[2:]


def test_a_final_that_the_broker_had_not_confirmed_is_sent_again() -> None:
    world = World()
    world.request("r", "hello")
    world.confirms = False
    world.say(world.generated[0].uid, "all")
    world.finish(world.generated[0].uid)
    later = World(before=world)
    assert not later.generated
    assert later.reply()[-1] == world.reply()[-1]
    assert not World(before=later).reply()


def test_after_a_power_cut_it_runs_again_in_the_next_generation() -> None:
    world = World()
    world.request("r", "hello")
    world.say(world.generated[0].uid, "Once ")
    later = World(before=world, intact=False, same_boot=False)
    [again] = later.generated
    assert again.generated == ()
    later.say(again.uid, "Twice")
    later.finish(again.uid)
    assert [(m["gen"], m["seq"], m["type"]) for m in later.reply()] == [
        (2, 0, "accepted"),
        (2, 1, "chunk"),
        (2, 2, "final"),
    ]
    assert later.reply()[-1]["metrics"]["resumed"] == 0
    result = joined(world, later).result
    assert result is not None
    assert result.text == "Twice"


def test_nothing_of_a_new_generation_is_published_before_its_number_is_safe() -> None:
    world = World()
    world.request("r", "hello")
    world.memory.full = "no"
    later = World(before=world, intact=False, same_boot=False)
    later.wait(10)
    assert not later.reply()
    later.memory.full = None
    later.wait(2)
    later.finish(later.generated[0].uid)
    assert [m["type"] for m in later.reply()] == ["accepted", "final"]


@pytest.mark.parametrize("boot", ["same", "other"])
def test_a_deadline_goes_on_while_no_daemon_runs(boot: str) -> None:
    world = World(parallel=1)
    world.request("runs", {"prompt": "a", "timeout_s": 10})
    world.request("waits", {"prompt": "b", "timeout_s": 60})
    world.time += 20
    same = boot == "same"
    later = World(before=world, parallel=1, same_boot=same, intact=same)
    [error] = [m["error"] for m in later.reply("runs") if m["type"] == "final"]
    assert error["code"] == "timeout"
    assert [g.messages[-1][1] for g in later.generated if g.messages] == ["b"], "what has expired is not run"
    later.wait(41)
    assert later.cancelled == [later.generated[-1].uid]


def test_a_clock_that_stands_behind_after_a_boot_makes_no_deadline_longer() -> None:
    world = World()
    world.request("r", {"prompt": "a", "timeout_s": 10})
    world.start -= 100_000
    later = World(before=world, same_boot=False, intact=False)
    later.wait(10.1)
    assert later.cancelled


def test_a_request_under_which_daemon_after_daemon_dies_is_given_up() -> None:
    world = World()
    world.request("r", "poison")
    for _ in range(20):
        world = World(before=world)
        if world.reply() and world.reply()[-1]["type"] == "final":
            break
    assert world.reply()[-1]["error"]["code"] == "crashed"


def test_a_daemon_that_is_killed_again_and_again_loses_nobody_who_makes_progress() -> None:
    world = World()
    world.request("r", "long")
    for number in range(20):
        world.say(world.generated[-1].uid, f"{number} ")
        world.wait(1)
        world = World(before=world)
    world.finish(world.generated[-1].uid)
    assert world.reply()[-1]["text"] == "".join(f"{number} " for number in range(20))
    assert world.reply()[-1]["metrics"]["resumed"] == 20


@pytest.mark.parametrize(
    ("payload", "changes", "code"),
    [
        ({"prompt": "a", "max_tokens": 500}, {"max_tokens": 100}, "bad_request"),
        (
            {"prompt": "a", "model": "m"},
            {"models": (type(SETTINGS.models[0])("other", SETTINGS.models[0].defaults),)},
            "unknown_model",
        ),
    ],
)
def test_a_request_that_todays_settings_do_not_allow_is_answered(payload: Any, changes: Any, code: str) -> None:
    world = World()
    world.request("r", payload)
    world.say(world.generated[0].uid, "a bit")
    later = World(before=world, **changes)
    final = later.reply()[-1]
    assert (final["gen"], final["seq"], final["error"]["code"], final["chars"]) == (1, 2, code, 5)


def test_numbers_go_on_so_that_made_ids_never_meet() -> None:
    world = World()
    world.request("", "one")
    later = World(before=world)
    later.request("", "two")
    assert (
        len(
            {
                m["id"]
                for w in (world, later)
                for p in w.published
                if "/reply/" in p.topic
                for m in [json.loads(p.payload)]
            }
        )
        == 2
    )


def test_a_request_without_id_that_the_broker_sends_again_is_the_same_request() -> None:
    world = World()
    world.syncs = False
    world.request("", "hello", packet_id=7)
    assert not world.acked
    later = World(before=world)
    later.request("", "hello", packet_id=7, duplicate=True)
    assert len(later.generated) == 1
    assert len(later.acked) == 1
    later.request("", "hello", packet_id=7)
    assert len(later.generated) == 2, "without the flag it is another one"


def test_a_daemon_that_dies_while_a_suspect_waits_says_nothing_against_it() -> None:
    world = World()
    world.request("r", "innocent")
    world.lose()
    for _ in range(10):
        world = World(before=world, ready=False)
    world.ready()
    assert [g.messages for g in world.generated] == [(("user", "innocent"),)]
    world.finish(world.generated[0].uid)
    assert (world.reply()[-1]["finish_reason"], world.reply()[-1]["metrics"]["resumed"]) == ("stop", 1)
