"""Who took the engine down twice ends as `crashed`, and nobody else does, however it died."""

from __future__ import annotations

import random

import pytest

from edged.core.events import Hold
from tests.core.simulated import SimulatedEngine, text
from tests.core.world import World


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
    assert text("d", place).startswith(world.text("d/d"))
    for name in "abcefgh":
        final = world.reply(f"{name}/{name}")[-1]
        assert (final["finish_reason"], final["metrics"]["resumed"]) == ("stop", 1)
        assert final["usage"]["completion_tokens"] == 40
        assert world.text(f"{name}/{name}") == text(name, 40)
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
        assert world.text(name) == text(name, 200)
        assert final["usage"]["completion_tokens"] == 200
        assert final["metrics"]["resumed"] == 1
    assert [world.reply(name)[-1]["metrics"]["preemptions"] for name in lengths] == [1, 1, 0]


def suspects(names: str) -> World:
    """Requests whose engine has died; the first of them goes on, alone."""
    world = World(parallel=4)
    for name in names:
        world.request(name, name)
    world.lose()
    world.ready(parallel=4)
    return world


def prompts(world: World) -> list[str]:
    """Of all that the engines were given, in order."""
    return ["".join(content for _, content in order.messages or ()) for order in world.generated]


def test_nobody_waits_for_a_suspect_that_is_paused() -> None:
    world = World(parallel=4)
    for name in "abc":
        world.request(name, name)
    world.ctl("a", "pause")
    world.lose()
    world.ready(parallel=4)
    world.request("new", "new")
    for name in "bc":
        world.say(world.running(name), "0" * 8, 8)
        if name == "b":
            assert world.cancelled == [world.running("b")]
            world.finish(world.running("b"), "cancelled")

    assert prompts(world) == ["a", "b", "c", "b", "c", "b", "new"]
    assert world.on("status")[-1]["state"] == "online"


def test_a_suspect_that_is_paused_while_it_is_alone_makes_way_and_is_alone_again_when_it_goes_on() -> None:
    world = suspects("ab")
    a, b = world.running("a"), world.running("b")
    world.ctl("a", "pause")
    assert world.cancelled == [a]
    world.finish(a, "cancelled")
    world.say(b, "0" * 8, 8)
    world.request("new", "new")
    assert prompts(world) == ["a", "b", "a", "b", "new"]

    world.ctl("a", "resume")
    new = world.running("new")
    assert world.cancelled == [a, b, new]
    for uid in (b, new):
        world.finish(uid, "cancelled")
    assert prompts(world)[5:] == ["a"]
    world.say(a, "1" * 8, 8)
    assert prompts(world)[5:] == ["a", "b", "new"]
    for uid in (a, b, new):
        world.finish(uid)
    assert [world.text(name) for name in ("a", "b", "new")] == ["1" * 8, "0" * 8, ""]


def test_a_suspect_whose_text_does_not_get_away_makes_way_until_it_does() -> None:
    world = suspects("ab")
    a = world.running("a")
    world.confirms = False
    while Hold("m", a) not in world.effects:
        world.say(a, "x" * 40_000)
    assert world.cancelled == [a], "with the event by which it is held, for no other may come"
    world.finish(a, "cancelled")
    assert prompts(world) == ["a", "b", "a", "b"]
    world.finish(world.running("b"))
    assert prompts(world)[4:] == []

    world.confirms = True
    world.confirm()
    world.wait(0.1)
    assert prompts(world)[4:] == ["a"]


def test_a_pause_through_many_kills_from_outside_is_nobodys_fault() -> None:
    world = World(parallel=4)
    for name in ("held", "runs"):
        world.request(name, name)
    world.say(world.running("held"), "Once ", 9)
    world.ctl("held", "pause")
    for _ in range(8):
        world.say(world.running("runs"), "x")
        world.lose(outside=True)
        world.ready(parallel=4)
    world.ctl("held", "resume")
    world.lose(outside=True)
    world.ready(parallel=4)
    world.finish(world.running("held"))
    assert world.reply("held")[-1]["metrics"]["resumed"] == 9
    assert world.text("held") == "Once "


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
        assert world.text(name) == text(name, 40)
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
    assert [world.text(name) for name in "ac"] == [text(name, 40) for name in "ac"]


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
    assert world.text("b") == text("b", 60)


def test_deaths_at_different_places_are_not_the_requests_fault() -> None:
    world = World(parallel=1)
    engine = SimulatedEngine(world, {"a": 200}, parallel=1)
    world.request("a", {"prompt": "a", "max_tokens": 200})
    for _ in range(12):
        for _ in range(14):
            engine.step()
        engine.die()
    engine.run()

    assert world.text("a") == text("a", 200)
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
            assert world.text(name) == text(name, lengths[name])
        else:
            assert name in cancelled or (name in poison and final["error"]["code"] == "crashed")
            assert text(name, lengths[name]).startswith(world.text(name))
    assert world.core._load.waiting == world.core._load.running == 0
