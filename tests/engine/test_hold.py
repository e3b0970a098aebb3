"""A request that is held: what is measured of it, when its child is given up, and what a real model says after it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edged.engine.process import Lost
from edged.engine.protocol import Cancel, Hold, Load, Note, Ready, Release, Step
from edged.engine.sequence import Timing
from edged.testing import ScriptedEngine
from tests.engine.handles import IMPATIENT, ROOT, Handle, child, generate, until
from tests.engine.talk import Talk, counted, counting

# --- figures ---


def test_a_pause_is_in_no_figure() -> None:
    """A prompt of 10 tokens in 2 s and four tokens 0.1 s apart, with pauses of 50 s in the prompt and between two."""
    timing = Timing(first_step=100.0)
    timing.hold(101.0)
    timing.hold(120.0)
    timing.release(151.0)
    timing.token(152.0, 1)
    timing.token(152.1, 1)
    timing.hold(152.15)
    timing.release(202.15)
    timing.release(300.0)
    timing.token(202.2, 1)
    timing.token(202.3, 1)
    assert timing.metrics(prefilled=10, now=400.0) == {
        "waited_ms": 0,
        "prefill_time_ms": 2000,
        "generation_time_ms": 300,
        "tokens_per_second": 10,
        "prompt_tokens_per_second": 5,
        "mean_batch_size": 1,
        "mean_itl_ms": 100,
        "p95_itl_ms": 100,
        "max_itl_ms": 100,
    }


def test_a_pause_before_the_first_step_is_no_waiting() -> None:
    timing = Timing(came=10.0)
    timing.hold(11.0)
    timing.release(51.0)
    timing.begin(52.0)
    assert timing.metrics(prefilled=0, now=60.0)["waited_ms"] == 2000


def test_a_pause_that_lasts_until_the_end_is_in_no_figure() -> None:
    timing = Timing(first_step=10.0)
    timing.hold(12.0)
    assert timing.metrics(prefilled=20, now=500.0)["prefill_time_ms"] == 2000


# --- the watch ---


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("_here")
def test_a_child_whose_requests_are_all_held_may_stand_still_until_one_is_released() -> None:
    with child("waits", patience=IMPATIENT) as handle:
        handle.next(Ready)
        for uid in (1, 2):
            handle.send(generate(uid, "nothing"))
            handle.send(Hold(uid))
            handle.next(Note)
            handle.next(Note)
        time.sleep(2.0)  # for what must not happen
        handle.send(Hold(99))
        assert handle.next(Note)[0] == 1, "it is the first child still"
        handle.send(Release(2))
        assert "has not moved" in handle.next(Lost)[1].reason


@pytest.mark.usefixtures("_here")
def test_a_child_that_does_not_end_a_request_that_is_held_and_cancelled_is_replaced() -> None:
    with child("hangs", "stop", patience=IMPATIENT) as handle:
        handle.next(Ready)
        handle.send(generate(1, "hang"))
        handle.send(Hold(1))
        handle.send(Cancel(1))
        assert "has not moved" in handle.next(Lost)[1].reason


@pytest.mark.usefixtures("_here")
def test_a_child_that_hangs_in_a_step_is_replaced_even_if_all_are_held_by_now() -> None:
    with child("waits", patience=IMPATIENT) as handle:
        handle.next(Ready)
        handle.send(generate(1, "step"))
        assert handle.next(Note)[1].text == "generate"
        handle.send(Hold(1))
        assert "in a step that should take 0.1 s" in handle.next(Lost)[1].reason


@pytest.mark.usefixtures("_here")
def test_a_request_that_is_held_and_cancelled_ends_and_leaves_nothing_to_watch() -> None:
    with child("waits", patience=IMPATIENT) as handle:
        handle.next(Ready)
        for order in (generate(1, "nothing"), Hold(1), Cancel(1)):
            handle.send(order)
        assert [one.reason for one in handle.next(Step)[1].finished] == ["cancelled"]
        time.sleep(1.5)  # for what must not happen
        handle.send(Hold(1))
        assert handle.next(Note)[0] == 1


# --- the scripted engine ---


def test_a_scripted_engine_tells_who_is_held() -> None:
    heard: list[object] = []
    engine = ScriptedEngine(Load(path="none"), lambda _, report: heard.append(report))
    engine.start()
    engine.send(1, generate(1, "x"))
    for order in (Hold(1), Hold(2)):
        engine.send(1, order)
    assert engine.held == {1}
    engine.send(1, Release(1))
    assert engine.held == set()
    engine.send(1, Hold(1))
    engine.finish(1)
    assert engine.held == set()


# --- a real model ---


def processor_time(pid: int) -> int:
    """What a process has used, in ticks of the kernel's clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.model
def test_a_request_that_was_held_says_what_it_would_have_said(talk: Talk) -> None:
    expected = talk.say(counting(), max_tokens=60)
    uid = talk.ask(counting(), max_tokens=60)
    answer = talk.answers[uid]
    for so_far in (5, 20):
        while len(answer.deltas) < so_far:
            talk.listen()
        talk.hold(uid)
        talk.hold(uid)
        beside = talk.say(counting(40), max_tokens=4)  # behind the hold: when it has ended, that has long come
        assert beside.text.startswith(counted(47, 1))
        said = len(answer.deltas)
        talk.say(counting(60), max_tokens=12)
        assert len(answer.deltas) == said, "nothing comes while it is held"
        assert answer.finished is None
        talk.release(uid)
    talk.finish(uid)
    assert (answer.text, answer.ids) == (expected.text, expected.ids)
    assert (answer.end.reason, answer.end.completion_tokens) == ("length", 60)


@pytest.mark.model
def test_an_engine_that_has_only_held_requests_sleeps_and_obeys(starter: Path) -> None:
    with Handle(Load(path=str(starter), context=512, parallel=2, threads=1, digest="known")) as handle:
        talk = Talk(handle)
        pid = handle.engine.pid
        assert pid is not None
        asked = time.monotonic()
        uids = [talk.ask(counting(start), max_tokens=200) for start in (1, 20, 40)]  # the third waits for a place
        while not all(talk.answers[uid].deltas for uid in uids[:2]):
            talk.listen()
        for uid in uids:
            talk.hold(uid)

        def rests() -> bool:
            before = processor_time(pid)
            time.sleep(0.25)
            return processor_time(pid) == before

        until(rests)
        held = time.monotonic()
        talk.cancel(uids[0])
        [cancelled] = talk.finish(uids[0])
        assert cancelled.end.reason == "cancelled"
        assert cancelled.end.completion_tokens == cancelled.tokens >= 1
        talk.hold(10**9)
        talk.release(10**9)
        until(rests)
        assert talk.answers[uids[2]].deltas == [], "it was held before its turn"
        assert talk.say(counting(60), max_tokens=2).text
        pause_ms = (time.monotonic() - held) * 1000
        for uid in uids[1:]:
            talk.release(uid)
        second, third = talk.finish(*uids[1:])
        total_ms = (time.monotonic() - asked) * 1000
        assert second.end.timings["generation_time_ms"] <= total_ms - pause_ms, "the pause is not counted"
        assert [answer.end.reason for answer in (second, third)] == ["length", "length"]
        assert (second.tokens, third.tokens) == (200, 200)
        assert second.text.startswith(counted(27, 1))
        assert third.text.startswith(counted(47, 1))
