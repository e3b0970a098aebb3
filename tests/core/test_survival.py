"""What runs when the engine dies goes on in the next one; who killed it twice does not."""

from __future__ import annotations

import itertools
import random
import zlib

import pytest

from edged.core.events import Drain, EngineLoading, EngineStep, Finished, PrefillProgress, Stop
from tests.core.simulated import SimulatedEngine, answer
from tests.core.world import World


def _text(prompt: str, length: int) -> str:
    return "".join(answer(prompt, length))


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
    world.finish(uid, prompt_tokens=4, completion_tokens=4)

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
    assert final["metrics"]["queue_time_ms"] == 0
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


# --- who is to blame ---


@pytest.mark.parametrize("place", [0, 1, 5, 30])
def test_one_poisonous_request_ends_as_crashed_after_two_deaths_and_its_neighbours_end_well(place: int) -> None:
    world = World(parallel=8)
    lengths = dict.fromkeys("abcdefgh", 40)
    engine = SimulatedEngine(world, lengths, poison={"d": place})
    for name in lengths:
        world.request(f"{name}/{name}", name)
    engine.run()

    assert engine.deaths == 2
    error = world.reply("d/d")[-1]["error"]
    assert (error["code"], error["status"], error["retryable"]) == ("crashed", 507, False)
    # All but those whose text was held back when it died.
    assert _text("d", place).startswith(world.text("d/d"))
    for name in "abcefgh":
        final = world.reply(f"{name}/{name}")[-1]
        assert (final["finish_reason"], final["metrics"]["resumed"]) == ("stop", 1)
        assert final["usage"]["completion_tokens"] == 40
        assert world.text(f"{name}/{name}") == _text(name, 40)
    assert engine.most == 8


def test_two_poisonous_requests_are_told_apart_from_their_neighbours() -> None:
    world = World(parallel=4)
    engine = SimulatedEngine(world, dict.fromkeys("abcd", 30), parallel=4, poison={"b": 4, "d": 4})
    for name in "abcd":
        world.request(name, name)
    engine.run()

    assert [world.reply(name)[-1].get("error", {}).get("code") for name in "abcd"] == [None, "crashed", None, "crashed"]
    assert engine.deaths == 3


def test_a_suspect_runs_alone_until_it_has_eight_more_tokens() -> None:
    world = World(parallel=4)
    world.request("a", "a")
    world.say(world.running("a"), "some ", 5)
    world.lose()
    world.ready(parallel=4)
    world.request("new", "new")
    assert world.reply("new")[0]["queue_position"] == 1
    assert world.on("status")[-1]["state"] == "busy"
    world.say(world.running("a"), "seven ", 7)
    assert len(world.generated) == 2
    world.say(world.running("a"), "one")

    assert world.generated[-1].messages == (("user", "new"),)


def test_cleared_suspects_make_way_so_that_long_answers_do_not_hold_up_the_others() -> None:
    world = World(parallel=3)
    lengths = dict.fromkeys("abc", 200)
    engine = SimulatedEngine(world, lengths, parallel=3)
    for name in lengths:
        world.request(name, {"prompt": name, "max_tokens": 200})
    for _ in range(5):
        engine.step()
    engine.die()
    seen = []
    for _ in range(40):
        if engine.prompts not in seen:
            seen.append(engine.prompts)
        engine.step()

    assert seen == [["a"], ["b"], ["c"], ["c", "a", "b"]]
    engine.run()
    for name in lengths:
        final = world.reply(name)[-1]
        assert world.text(name) == _text(name, 200)
        assert final["usage"]["completion_tokens"] == 200
        assert final["metrics"]["resumed"] == 1
    assert [world.reply(name)[-1]["metrics"]["preemptions"] for name in lengths] == [1, 1, 0]


def _making_way() -> tuple[World, int, int]:
    """Two suspects, of which the first has been cleared and is asked to make way for the second."""
    world = World(parallel=2)
    world.request("a", {"prompt": "a", "timeout_s": 50})
    world.request("b", "b")
    world.lose()
    world.ready()
    a, b = world.running("a"), world.running("b")
    world.say(a, "0" * 8, 8)
    assert world.cancelled == [a]
    world.say(a, "passed over")
    return world, a, b


@pytest.mark.parametrize("reason", ["cancelled", "stop", "error"])
@pytest.mark.parametrize("dies", [False, True])
def test_what_an_engine_says_after_it_was_asked_to_set_a_stream_aside_does_not_come_twice(
    reason: str, *, dies: bool
) -> None:
    world, a, b = _making_way()
    if dies:
        world.lose(outside=True)
        world.ready()
    else:
        world.finish(a, reason)
    assert [e.uid for e in world.generated] == [a, b, a, b]
    world.finish(b)
    assert (world.generated[-1].uid, world.generated[-1].generated) == (a, tuple(range(8)))
    world.say(a, "!")
    world.finish(a)

    assert world.text("a") == "0" * 8 + "!"


@pytest.mark.parametrize("ending", ["cancelled", "timeout"])
@pytest.mark.parametrize("reason", ["cancelled", "stop"])
def test_a_stream_that_ends_while_it_makes_way_keeps_what_it_had(ending: str, reason: str) -> None:
    world, a, b = _making_way()
    if ending == "cancelled":
        world.ctl("a")
    else:
        world.wait(60)
    assert world.cancelled == [a]  # once is enough
    world.say(a, "passed over")
    world.finish(a, reason)

    final = world.reply("a")[-1]
    assert final.get("error", {}).get("code", final["finish_reason"]) == ending
    assert world.text("a") == "0" * 8
    assert [e.uid for e in world.generated] == [a, b, a, b]


def test_kills_from_outside_blame_nobody() -> None:
    world = World(parallel=8)
    lengths = dict.fromkeys("abcd", 40)
    engine = SimulatedEngine(world, lengths)
    for name in lengths:
        world.request(name, name)
    for _ in range(20):
        engine.step()
        engine.step()
        engine.die(outside=True)
        assert len(engine.prompts) == 4
    engine.run()

    for name in lengths:
        assert world.text(name) == _text(name, 40)
        assert world.reply(name)[-1]["metrics"]["resumed"] == 20


def test_kills_that_look_like_ones_from_outside_but_never_end_are_some_requests_fault() -> None:
    """The kernel, when memory runs out: SIGKILL."""
    world = World(parallel=4)
    lengths = dict.fromkeys("abc", 40)
    engine = SimulatedEngine(world, lengths, parallel=4)
    for name in lengths:
        world.request(name, name)
    deaths = 0
    for _ in range(200):
        if "b" in engine.prompts:
            engine.die(outside=True)
            deaths += 1
        else:
            engine.step()
    engine.run()

    assert world.reply("b")[-1]["error"]["code"] == "crashed"
    assert deaths == 7
    assert [world.text(name) for name in "ac"] == [_text(name, 40) for name in "ac"]


def test_a_kill_from_outside_neither_clears_nor_condemns_a_suspect() -> None:
    world = World(parallel=2)
    engine = SimulatedEngine(world, dict.fromkeys("ab", 60), parallel=2, poison={"a": 7})
    for name in "ab":
        world.request(name, name)
    for _ in range(7):
        engine.step()
    engine.step()  # dies
    for _ in range(5):
        engine.die(outside=True)
        assert engine.prompts == ["a"]
    engine.run()

    assert world.reply("a")[-1]["error"]["code"] == "crashed"
    assert world.reply("a")[-1]["metrics"]["resumed"] == 6
    assert world.text("b") == _text("b", 60)


def test_deaths_at_different_places_are_not_the_requests_fault() -> None:
    world = World(parallel=1)
    engine = SimulatedEngine(world, {"a": 200}, parallel=1)
    world.request("a", {"prompt": "a", "max_tokens": 200})
    for _ in range(12):
        for _ in range(14):
            engine.step()
        engine.die()
    engine.run()

    assert world.text("a") == _text("a", 200)
    assert world.reply("a")[-1]["metrics"]["resumed"] == 12


@pytest.mark.parametrize("seed", range(40))
def test_whenever_engines_die_every_stream_ends_once_and_its_text_is_whole(seed: int) -> None:
    rng = random.Random(seed)
    parallel = rng.choice((1, 2, 4, 8))
    world = World(parallel=parallel, max_queue=100, max_queue_per_client=100, flush_tokens=rng.choice((1, 4, 32)))
    names = [chr(97 + i) for i in range(rng.randrange(1, 12))]
    lengths = {name: rng.randrange(1, 60) for name in names}
    poison = {name: rng.randrange(lengths[name]) for name in names if rng.random() < 0.15}
    engine = SimulatedEngine(world, lengths, parallel=parallel, poison=poison)
    cancelled, waiting = set(), list(names)
    for _ in range(1500):
        event = rng.random()
        if waiting and event < 0.2:
            name = waiting.pop()
            world.request(name, {"prompt": name, "priority": rng.choice(("low", "normal", "high"))})
        elif event < 0.24:
            engine.die(outside=True)
        elif event < 0.25:
            name = rng.choice(names)
            if name not in waiting:
                cancelled.add(name)
                world.ctl(name)
        else:
            engine.step()
    for name in waiting:
        world.request(name, name)
    engine.run()

    for name in names:
        messages = world.reply(name)
        final = messages[-1]
        assert [m["type"] for m in messages].count("final") == 1
        assert [m["seq"] for m in messages] == list(range(len(messages)))
        if final["finish_reason"] == "stop":
            assert world.text(name) == _text(name, lengths[name])
        else:
            assert name in cancelled or (name in poison and final["error"]["code"] == "crashed")
            assert _text(name, lengths[name]).startswith(world.text(name))
    assert world.core._load.waiting == world.core._load.running == 0


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
