"""What one accepted request gets to hear: dense numbers, coalesced chunks, one final."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.core.events import (
    Confirmations,
    Delta,
    Effect,
    EngineStep,
    Event,
    Now,
    PrefillProgress,
    Publish,
    Published,
)
from edged.wire.assembly import Reassembler
from tests.core.world import World


def test_accepted_chunks_final() -> None:
    world = World()
    world.request("alice/r", {"prompt": "hi", "metadata": {"a": "b"}, "seed": 5})
    [order] = world.generated
    world.say(order.uid, "Hel")
    world.say(order.uid, "lo")
    world.finish(order.uid, prompt_tokens=3, completion_tokens=2)

    accepted, first, second, final = world.reply("alice/r")
    assert [m["seq"] for m in (accepted, first, second, final)] == [0, 1, 2, 3]
    assert accepted["type"] == "accepted"
    assert (accepted["node"], accepted["boot"], accepted["model"], accepted["queue_position"]) == ("n", 7, "m", 0)
    assert (first["text"], second["text"]) == ("Hel", "lo")
    assert (final["text"], final["chars"], final["crc32"]) == ("Hello", 5, zlib.crc32(b"Hello"))
    assert final["finish_reason"] == "stop"
    assert final["seed"] == 5
    assert final["usage"]["completion_tokens"] == 2
    assert accepted["metadata"] == final["metadata"] == {"a": "b"}
    assert "error" not in final


def test_first_chunk_leaves_at_once_and_later_text_is_rolled_up() -> None:
    world = World()
    world.request()
    uid = world.generated[0].uid
    for i in range(5):
        world.say(uid, str(i))
    assert [m["text"] for m in world.reply()[1:]] == ["0"]

    world.wait(0.05)

    assert [(m["text"], m["n"]) for m in world.reply()[1:]] == [("0", 1), ("1234", 4)]


def _together(world: World, *names: str) -> list[list[str]]:
    """Which streams had chunks in the effects of one event, for each event that brought any."""
    taken: list[list[str]] = []
    tell = world.core.handle

    def handle(event: Event, now: Now) -> list[Effect]:
        effects = tell(event, now)
        topics = [e.topic for e in effects if isinstance(e, Publish) and b'"chunk"' in e.payload]
        if topics:
            taken.append([name for name in names if f"edged/v1/n/reply/{name}" in topics])
        return effects

    world.core.handle = handle  # type: ignore[method-assign]  # a test may listen in
    return taken


def test_chunks_that_are_soon_due_leave_with_one_that_is() -> None:
    world = World(parallel=3)
    for name in "abc":
        world.time += 0.012
        world.request(name, name)
        world.say(world.running(name), "first ")
    for name in "abc":
        world.say(world.running(name), "second ")
    together = _together(world, *"abc")
    assert world.core.wake_at() == pytest.approx(1000.052)
    world.wait(0.2)

    # a's was due 40 ms after its first, b's 12 ms later and c's 24 ms: that is more than half of the time.
    assert together == [["a", "b"], ["c"]]


def test_chunks_of_streams_that_run_together_come_to_leave_together() -> None:
    world = World(parallel=3)
    for name in "abc":
        world.request(name, name)
        world.say(world.running(name), "first ")
        world.time += 0.013
    together = _together(world, *"abc")
    for _ in range(40):
        world.tell(EngineStep("m", deltas=tuple(Delta(world.running(name), "x", (1,)) for name in "abc")))
        world.wait(0.011)
    world.wait(0.1)

    assert together[3:] == [list("abc")] * len(together[3:])
    assert 8 <= len(together) <= 16


def test_without_rolling_up_every_text_leaves_at_once() -> None:
    world = World(flush_s=0.0)
    world.request()
    for i in range(4):
        world.say(world.generated[0].uid, str(i))

    assert [m["text"] for m in world.reply()[1:]] == ["0", "1", "2", "3"]


def test_many_tokens_are_sent_without_waiting() -> None:
    world = World(flush_tokens=3)
    world.request()
    uid = world.generated[0].uid
    for i in range(7):
        world.say(uid, str(i))

    assert [m["text"] for m in world.reply()[1:]] == ["0", "123", "456"]


def test_chunks_grow_while_the_broker_does_not_confirm() -> None:
    world = World()
    world.confirms = False
    world.request()
    uid = world.generated[0].uid
    for i in range(100):
        world.say(uid, f"{i} ")
        world.wait(0.05)
    waiting = len(world.reply())

    world.finish(uid)

    assert len(world.reply()) == waiting == 4
    world.confirm()
    assert len(world.reply()) == waiting + 2  # the rest of the text in one chunk, and the final
    assert "".join(m.get("text", "") for m in world.reply()[:-1]) == "".join(f"{i} " for i in range(100))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=4), st.floats(0, 0.1)), max_size=40), st.booleans(), st.integers(1, 4))
def test_what_is_said_is_what_was_generated(pieces: list[tuple[str, float]], confirms: bool, tokens: int) -> None:
    world = World(flush_tokens=tokens + 2)
    world.confirms = confirms
    world.request()
    uid = world.generated[0].uid
    for text, seconds in pieces:
        if text:
            world.say(uid, text, tokens)
        world.wait(seconds)
    world.finish(uid)
    world.confirm()

    messages = world.reply()
    assert [m["seq"] for m in messages] == list(range(len(messages)))
    assert [m["type"] for m in messages].count("final") == 1
    reassembler = Reassembler(id="r")
    for published in world.published:
        if published.topic.endswith("/reply/r"):
            reassembler.feed(published.payload)
    assert reassembler.result is not None
    assert reassembler.result.text == "".join(text for text, _ in pieces)
    assert sum(m["n"] for m in messages if m["type"] == "chunk") == tokens * sum(1 for text, _ in pieces if text)


@pytest.mark.parametrize("how", ["ask", "stream: false"])
def test_only_the_final_with_the_whole_text(how: str) -> None:
    world = World()
    long = "x" * 20_000
    if how == "ask":
        world.request("r", {"prompt": "a", "include_text": False}, kind="ask")
    else:
        world.request("r", {"prompt": "a", "stream": False})
    world.say(world.generated[0].uid, long)
    world.finish(world.generated[0].uid)

    [final] = world.reply()
    assert (final["seq"], final["gen"], final["text"]) == (0, 1, long)


@pytest.mark.parametrize(
    ("include", "size", "there"), [(None, 16_384, True), (None, 16_385, False), (True, 20_000, True), (False, 1, False)]
)
def test_text_in_the_final(include: bool | None, size: int, there: bool) -> None:
    world = World()
    world.request("r", {"prompt": "a"} | ({} if include is None else {"include_text": include}))
    world.say(world.generated[0].uid, "x" * size)
    world.finish(world.generated[0].uid)

    final = world.reply()[-1]
    assert ("text" in final) is there
    assert final["chars"] == size


def test_correlation_data_and_expiry_go_on_every_message() -> None:
    world = World()
    world.request(payload={"prompt": "a"}, correlation=b"c", response_topic="reply/mine")
    world.say(world.generated[0].uid, "x")
    world.finish(world.generated[0].uid)

    mine = [p for p in world.published if p.topic == "reply/mine"]
    assert len(mine) == 3
    assert {(p.properties.correlation, p.properties.expiry_s, p.qos, p.retain) for p in mine} == {(b"c", 600, 1, False)}


def test_reply_to_wins_over_the_response_topic() -> None:
    world = World()
    world.request(payload={"prompt": "a", "reply_to": "reply/payload"}, response_topic="reply/property")

    assert [p.topic for p in world.published if p.topic.startswith("reply/")] == ["reply/payload"]


def test_progress_while_queued_and_in_prefill_at_most_twice_a_second() -> None:
    world = World(parallel=1)
    world.request("first")
    world.request("r", {"prompt": "r", "progress": True})
    for _ in range(4):
        world.wait(0.2)
    [queued, later] = world.reply()[1:]
    assert (queued["phase"], queued["queue_position"]) == ("queued", 1)
    assert later["ts"] - queued["ts"] >= 0.5

    world.finish(world.generated[0].uid)
    uid = world.running("r")
    for done in (10, 20, 30):
        world.time += 0.3
        world.tell(EngineStep("m", prefill=(PrefillProgress(uid, done, 30),)))

    prefill = [m for m in world.reply() if m.get("phase") == "prefill"]
    assert [m["done"] for m in prefill] == [10, 30]
    assert prefill[1]["ts"] - prefill[0]["ts"] >= 0.5
    assert prefill[0]["total"] == 30


def test_progress_while_the_model_loads() -> None:
    world = World(ready=False)
    world.request("r", {"prompt": "r", "progress": True})

    assert world.reply()[1] | {"ts": 0} == {
        "id": "r", "gen": 1, "seq": 1, "ts": 0, "type": "progress", "phase": "loading", "queue_position": 1, "done": 0,
        "total": 100,
    }  # fmt: skip


def test_the_time_in_the_queue_is_that_before_an_engine_takes_it_and_that_in_the_engine() -> None:
    world = World(parallel=1)
    world.request("first")
    world.request("r", "r")
    world.wait(0.2)
    world.finish(world.generated[0].uid)
    world.wait(0.5)
    world.finish(world.running("r"), timings={"waited_ms": 300.0})

    metrics = world.reply()[-1]["metrics"]
    assert metrics["queue_time_ms"] == pytest.approx(500)
    assert "waited_ms" not in metrics


def test_late_words_of_an_ended_request_are_passed_over() -> None:
    world = World()
    world.request("r")
    uid = world.generated[0].uid
    world.finish(uid)
    before = len(world.published)
    world.say(uid, "late")
    world.finish(uid)

    assert len(world.published) == before


def test_text_that_the_engine_has_held_waits_for_no_more_than_the_rest_of_the_time() -> None:
    world = World()
    world.request()
    uid = world.generated[0].uid
    world.say(uid, "first ")
    world.time += 0.005
    world.tell(EngineStep("m", deltas=(Delta(uid, "held", (1,)),), held_s=0.020))
    assert world.core.wake_at() == pytest.approx(1000.005 - 0.020 + 0.040)


def test_text_that_was_held_for_nearly_all_of_the_time_leaves_at_once() -> None:
    world = World()
    world.request()
    uid = world.generated[0].uid
    world.say(uid, "first ")
    world.time += 0.005
    world.tell(EngineStep("m", deltas=(Delta(uid, "held", (1,)),), held_s=0.036))
    assert [m["text"] for m in world.reply() if m["type"] == "chunk"] == ["first ", "held"]


def test_confirmations_that_come_together_each_count() -> None:
    world = World(parallel=3, max_waiting=1)
    world.confirms = False
    for name in "abc":
        world.request(name, name)
    accepted = [publish for publish in world.published if publish.token is not None]
    for name in "abc":
        world.say(world.running(name), "text")
    assert not [m for name in "abc" for m in world.reply(name) if m["type"] == "chunk"]
    world.tell(Confirmations(tuple(Published(publish.token) for publish in accepted)))
    assert [m["text"] for name in "abc" for m in world.reply(name) if m["type"] == "chunk"] == ["text"] * 3
