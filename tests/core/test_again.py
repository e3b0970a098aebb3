"""The same id again, and `replay`: what was said is said once more, to the byte."""

from __future__ import annotations

import json

import pytest

from edged.wire.assembly import Reassembler
from tests.core.world import World


def ended(*pieces: str) -> World:
    world = World()
    world.request("r", "hello")
    for piece in pieces or ("Once ", "upon ", "a time"):
        world.say(world.generated[0].uid, piece)
        world.wait(1)
    world.finish(world.generated[0].uid)
    return world


def test_the_same_request_while_it_runs_is_sent_from_the_start_and_goes_on() -> None:
    world = World()
    world.request("r", "hello")
    uid = world.generated[0].uid
    world.say(uid, "one ")
    world.wait(1)
    world.say(uid, "two ")
    world.wait(1)
    world.request("r", "hello")
    world.say(uid, "three")
    world.finish(uid)
    assert [m["seq"] for m in world.reply()] == [0, 1, 2, 0, 1, 2, 3, 4]
    assert world.reply()[:3] == world.reply()[3:6]
    late = Reassembler()
    for message in world.reply()[3:]:
        late.feed(json.dumps(message))
    assert late.result is not None
    assert late.result.text == "one two three"
    assert len(world.generated) == 1


def test_the_same_request_after_its_end_is_sent_again() -> None:
    world = ended()
    first = world.reply()
    world.request("r", "hello")
    assert world.reply() == first + first
    assert len(world.generated) == 1
    assert World(before=world).generated == []


def test_it_is_sent_again_to_whoever_asks_wherever_that_is() -> None:
    world = ended()
    world.request("r", "hello", response_topic="reply/elsewhere", correlation=b"2")
    copies = [p for p in world.published if p.topic == "reply/elsewhere"]
    assert [json.loads(p.payload) for p in copies] == world.reply()
    assert {p.properties.correlation for p in copies} == {b"2"}


def test_another_body_under_an_id_that_is_remembered_is_a_conflict() -> None:
    world = ended()
    before = world.reply()
    world.request("r", "other")
    assert world.reply()[-1]["error"]["code"] == "id_conflict"
    assert world.reply()[:-1] == before


@pytest.mark.parametrize("payload", ["replay", '{"op":"replay"}', '{"op":"replay","from_seq":0,"gen":1}'])
@pytest.mark.parametrize("restarted", [False, True])
def test_replay_sends_all_of_it_again(payload: str, *, restarted: bool) -> None:
    world = ended()
    first = world.reply()
    if restarted:
        world = World(before=world)
        assert not world.reply()
        first = [*[], *first]
    count = len(world.reply())
    world.ctl("r", payload)
    assert world.reply()[count:] == first


def test_replay_from_a_number_while_it_runs() -> None:
    world = World()
    world.request("r", "hello")
    uid = world.generated[0].uid
    for piece in ("one ", "two ", "three "):
        world.say(uid, piece)
        world.wait(1)
    world.ctl("r", '{"op":"replay","from_seq":2}')
    world.say(uid, "four")
    world.finish(uid)
    assert [m["seq"] for m in world.reply()] == [0, 1, 2, 3, 2, 3, 4, 5]


@pytest.mark.parametrize("payload", ['{"op":"replay","from_seq":9}', '{"op":"replay","gen":2}'])
@pytest.mark.parametrize("runs", [False, True])
def test_what_is_not_there_is_answered_with_unknown_request(payload: str, *, runs: bool) -> None:
    world = ended()
    if runs:
        world.request("x", "x")
    path = "x" if runs else "r"
    before = len(world.reply(path))
    world.ctl(path, payload)
    if runs and "from_seq" in payload:
        assert len(world.reply(path)) == before, "it may come yet"
    else:
        answer = world.reply(path)[-1]
        assert (answer["gen"], answer["error"]["code"]) == (0, "unknown_request")


def test_what_is_sent_again_is_sent_in_portions() -> None:
    world = ended(*[f"{i} " for i in range(40)])
    world.confirms = False
    count = len(world.reply())
    for _ in range(50):
        world.ctl("r", "replay")
    assert len(world.reply()) == count + world.settings.max_waiting
    world.confirm()
    assert world.reply()[-1]["type"] == "final"


def test_so_many_answers_are_sent_again_at_once_and_no_more() -> None:
    world = World(parallel=8, max_queue=1000, max_queue_per_client=1000)
    for number in range(300):
        world.request(f"r{number}", "x", kind="ask")
        world.finish(world.generated[-1].uid)
    world.confirms = False
    for number in range(300):
        world.ctl(f"r{number}", "replay")
    refused = [
        number for number in range(300) if world.reply(f"r{number}")[-1].get("error", {}).get("code") == "overloaded"
    ]
    assert refused == list(range(256, 300))


def test_new_text_waits_until_what_is_sent_again_has_caught_up() -> None:
    world = World()
    world.request("r", "hello")
    uid = world.generated[0].uid
    for number in range(30):
        world.say(uid, f"{number} ")
        world.wait(1)
    world.confirms = False
    world.ctl("r", "replay")
    count = len(world.reply())
    for number in range(30, 60):
        world.say(uid, f"{number} ")
        world.wait(1)
    assert len(world.reply()) == count
    world.confirm()
    world.finish(uid)
    world.confirm()
    assert world.reply()[-1]["text"] == "".join(f"{number} " for number in range(60))
    seqs = [m["seq"] for m in world.reply()][31:]
    assert seqs == list(range(len(seqs)))
