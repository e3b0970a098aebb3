"""What runs when the engine dies goes on in the next one."""

from __future__ import annotations

import itertools
import zlib

import pytest

from edged.core.events import Drain, EngineLoading, EngineStep, Finished, PrefillProgress, Stop
from tests.core.world import World


def test_a_stream_goes_on_with_the_next_token_in_the_same_generation() -> None:
    world = World()
    world.request("r", "hello")
    uid = world.generated[0].uid
    for piece in ("Once ", "upon ", "a "):
        world.say(uid, piece)
    world.time += 3
    world.lose()
    assert len(world.generated) == 1
    world.ready()
    again = world.generated[1]
    world.say(uid, "time")
    world.finish(uid, prompt_tokens=4, completion_tokens=4, timings={"waited_ms": 40.0})

    assert again.crc32 == zlib.crc32(b"Once upon a ")
    assert (again.uid, again.generated, again.messages) == (uid, (0, 1, 2), world.generated[0].messages)
    messages = world.reply()
    assert world.text() == "Once upon a time"
    assert [m["seq"] for m in messages] == list(range(len(messages)))
    assert {m["gen"] for m in messages} == {1}
    final = messages[-1]
    assert (final["finish_reason"], final["text"], final["chars"]) == ("stop", "Once upon a time", 16)
    assert final["usage"] == {"prompt_tokens": 4, "cached_tokens": 0, "completion_tokens": 4, "reasoning_tokens": 0}
    assert final["metrics"]["resumed"] == 1
    assert final["metrics"]["queue_time_ms"] == 0, "what it waited for in the next engine, it waited after it had begun"
    assert final["metrics"]["time_to_first_token_ms"] == 0
    assert final["metrics"]["e2e_time_ms"] == pytest.approx(3000)


def test_text_that_waits_when_the_engine_dies_is_sent_while_the_next_one_loads() -> None:
    world = World()
    world.request()
    uid = world.generated[0].uid
    world.say(uid, "first ")
    world.say(uid, "second")
    world.lose()
    assert world.core.wake_at() == pytest.approx(1000.04)
    world.wait(0.05)

    assert [m["text"] for m in world.reply() if m["type"] == "chunk"] == ["first ", "second"]


def test_an_answer_without_a_stream_goes_on_as_well() -> None:
    world = World()
    world.request("r", "hello", kind="ask")
    uid = world.generated[0].uid
    world.say(uid, "Hel")
    world.lose()
    world.ready()
    world.say(uid, "lo")
    world.finish(uid)

    [final] = world.reply()
    assert (final["text"], final["metrics"]["resumed"]) == ("Hello", 1)


def test_survivors_come_before_everyone_who_waits_oldest_first_and_take_no_room_in_the_queue() -> None:
    world = World(parallel=2, max_queue=1)
    for name in ("a", "b"):
        world.request(name, name)
    world.request("vip", {"prompt": "vip", "priority": "high"})
    world.lose(outside=True)
    world.request("late")
    assert world.reply("late")[0]["error"]["code"] == "overloaded"  # one waits; the survivors are not counted
    world.ready()

    assert [e.messages[-1][1] for e in world.generated if e.messages] == ["a", "b", "a", "b"]
    world.finish(world.running("a"))
    assert world.generated[-1].messages == (("user", "vip"),)


def test_a_request_that_has_not_begun_counts_no_resumption() -> None:
    world = World(parallel=1)
    world.request("a", "a")
    world.request("b", "b")
    world.lose(outside=True)
    world.ready(parallel=2)
    for name in "ab":
        world.finish(world.running(name))

    assert [world.reply(name)[-1]["metrics"]["resumed"] for name in "ab"] == [1, 0]


def test_an_answer_that_was_as_long_as_it_may_be_ends_at_once() -> None:
    world = World()
    world.request("r", {"prompt": "hello", "max_tokens": 3})
    world.say(world.generated[0].uid, "abc", 3)
    world.lose()

    assert (world.reply()[-1]["finish_reason"], world.text()) == ("length", "abc")
    world.ready()
    assert len(world.generated) == 1


def test_who_is_being_cancelled_when_the_engine_dies_is_not_resumed() -> None:
    world = World()
    world.request("r")
    world.request("late", {"prompt": "x", "timeout_s": 5})
    world.say(world.generated[0].uid, "part")
    world.ctl("r")
    world.wait(6)
    world.lose()
    world.ready()

    assert (world.reply()[-1]["finish_reason"], world.text()) == ("cancelled", "part")
    assert world.reply("late")[-1]["error"]["code"] == "timeout"
    assert len(world.generated) == 2


def test_cancel_and_deadline_hold_while_it_waits_to_go_on() -> None:
    world = World()
    world.request("r")
    world.request("late", {"prompt": "x", "timeout_s": 5})
    for order in world.generated:
        world.say(order.uid, "part")
    world.lose()
    world.ctl("r")
    assert (world.reply()[-1]["finish_reason"], world.text()) == ("cancelled", "part")
    world.wait(6)
    final = world.reply("late")[-1]
    assert (final["error"]["code"], final["text"], final["metrics"]["resumed"]) == ("timeout", "part", 0)
    assert "while it ran" in final["error"]["message"]
    world.ready()

    assert len(world.generated) == 2
    assert not world.cancelled


def test_survivors_are_waiting_requests_on_the_card() -> None:
    world = World()
    world.request()
    world.lose()
    world.wait(2)

    card = world.on("status")[-1]
    assert (card["state"], card["queue"]["running"], card["queue"]["waiting"]) == ("loading", 0, 1)


def test_the_log_says_how_many_go_on() -> None:
    world = World()
    for name in "abc":
        world.request(name)
    world.lose("its process was ended by SIGKILL", outside=True, retry_in_s=0.2)
    [lost] = world.logged("engine lost")
    assert lost == {
        "model": "m", "reason": "its process was ended by SIGKILL", "outside": True, "retry_in_s": 0.2, "running": 2,
        "resuming": 2,
    }  # fmt: skip
    assert not world.logged("streams go on")
    world.ready()

    assert world.logged("streams go on") == [{"model": "m", "streams": 2, "waiting": 0}]


def test_progress_says_resumed_where_it_was_asked_for() -> None:
    world = World()
    world.request("r", {"prompt": "r", "progress": True})
    world.request("other", "other")
    world.lose(outside=True)
    world.time += 1
    world.tell(EngineLoading("m", 0.5))
    assert world.reply()[-1]["phase"] == "loading"
    world.ready()  # too soon after the last message for another
    assert world.reply()[-1]["phase"] == "loading"
    for done in range(1, 5):
        world.time += 0.3
        world.tell(EngineStep("m", prefill=(PrefillProgress(world.running("r"), done, 5),)))

    assert [m["phase"] for m in world.reply()[1:]] == ["loading", "loading", "resumed", "prefill"]
    stamps = [m["ts"] for m in world.reply()[1:]]
    assert all(later - sooner >= 0.5 for sooner, later in itertools.pairwise(stamps))
    assert len(world.reply("other")) == 1


def test_progress_says_paused_where_it_goes_on_in_another_engine_and_is_held_there() -> None:
    world = World()
    world.request("r", {"prompt": "r", "progress": True})
    world.say(world.running("r"), "Once ")
    world.ctl("r", "pause")
    world.lose(outside=True)
    world.wait(1)
    world.ready()
    world.wait(1)
    assert world.reply()[-1]["phase"] == "paused"
    world.ctl("r", "resume")
    world.wait(1)
    assert world.reply()[-1]["phase"] == "resumed"


# --- draining ---


def test_while_draining_streams_go_on_as_long_as_the_grace_period_lasts() -> None:
    world = World()
    world.request()
    uid = world.generated[0].uid
    world.say(uid, "par")
    world.lose()
    world.tell(Drain(20))
    assert world.reply()[-1]["type"] == "chunk"
    world.wait(1)
    world.ready()
    world.say(uid, "tial")
    world.finish(uid)

    assert (world.reply()[-1]["finish_reason"], world.text()) == ("stop", "partial")
    assert sum(isinstance(e, Stop) for e in world.effects) == 1


def test_who_still_waits_to_go_on_when_the_grace_period_is_over_is_cancelled() -> None:
    world = World()
    world.request()
    world.say(world.generated[0].uid, "par")
    world.tell(Drain(20))
    world.lose()
    assert not any(isinstance(e, Stop) for e in world.effects)
    world.wait(21)

    assert (world.reply()[-1]["finish_reason"], world.text()) == ("cancelled", "par")
    assert sum(isinstance(e, Stop) for e in world.effects) == 1


def test_an_engine_that_dies_after_the_grace_period_takes_what_it_ran_along() -> None:
    world = World()
    world.request()
    world.tell(Drain(20))
    world.wait(20.5)
    world.lose()

    assert world.reply()[-1]["finish_reason"] == "cancelled"
    assert sum(isinstance(e, Stop) for e in world.effects) == 1


def test_a_late_word_about_a_stream_that_waits_to_go_on_is_passed_over() -> None:
    world = World()
    world.request()
    uid = world.generated[0].uid
    world.lose()
    world.tell(EngineStep("m", finished=(Finished(uid, "stop"),)))

    assert [m["type"] for m in world.reply()] == ["accepted"]
