"""The worker beside programs that want the cores. It runs in the test's own process, and the clocks are scripted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edged.engine.threads import Clocks, Threads
from tests.engine.kinds import letters
from tests.engine.rig import PATIENCE_S, Rig


class Neighbours:
    """Programs beside the engine, as the kernel's clocks tell of them; time runs faster than in the real world."""

    def __init__(self) -> None:
        self.waiting = self.idle = 0.0
        self._clocks, self._at = Clocks(0.0, 0.0), time.monotonic()

    def now(self) -> Clocks:
        before, self._at = self._at, time.monotonic()
        elapsed = self._at - before
        self._clocks = Clocks(self._clocks.waited + self.waiting * elapsed, self._clocks.idle + self.idle * elapsed)
        return self._clocks


@pytest.fixture
def neighbours(monkeypatch: pytest.MonkeyPatch) -> Neighbours:
    scripted = Neighbours()
    monkeypatch.setattr(Clocks, "now", scripted.now)
    monkeypatch.setattr("edged.engine.threads._WINDOW_S", 0.02)
    monkeypatch.setattr("edged.engine.threads._BUSY", 0.0)  # the test takes its time between steps
    monkeypatch.setattr("edged.engine.threads._REST_S", (0.05, 0.05))
    monkeypatch.setattr("edged.engine.threads._STEPS", 10**9)  # whether it is faster is nothing to be tested by a clock
    monkeypatch.setattr("edged.engine.threads._TRIAL_S", 0.0)
    return scripted


@contextmanager
def working(path: Path, *, yields: bool = True) -> Iterator[Rig]:
    rig = Rig(path, yield_threads=yields)
    try:
        yield rig
    finally:
        rig.close()


def turn_slowly(rig: Rig) -> None:
    """So that no machine is fast enough to fill the cells with an answer while something is measured."""
    rig.turn()
    time.sleep(0.001)


def until(rig: Rig, threads: int) -> None:
    """Turn until llama.cpp computes with so many, and that has been told."""
    deadline = time.monotonic() + PATIENCE_S
    while rig.threads() != threads or f"with {threads} of 2" not in "".join(note.text for note in rig.notes()[-1:]):
        turn_slowly(rig)
        assert time.monotonic() < deadline


def turn_for(rig: Rig, seconds: float) -> None:
    """Turn for longer than it takes to measure something."""
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        turn_slowly(rig)


def test_a_core_that_others_want_is_left_to_them_and_taken_back(plain: Path, neighbours: Neighbours) -> None:
    with working(plain) as rig:
        rig.ask(1, letters(20, 1))
        rig.turn()
        assert rig.threads() == 2
        neighbours.waiting = 0.5
        until(rig, 1)
        neighbours.waiting, neighbours.idle = 0.0, 1.0
        until(rig, 2)
        assert [(note.level, note.text) for note in rig.notes()] == [
            ("info", "computing with 1 of 2 threads: other programs want the cores"),
            ("info", "computing with 2 of 2 threads: the cores are free again"),
        ]


def test_steps_that_only_decode_are_of_a_kind_by_their_sequences(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = list[int]()

    def note(_self: Threads, _now: float, _step_s: float, kind: int) -> str:
        kinds.append(kind)
        return ""

    monkeypatch.setattr(Threads, "note", note)
    with working(plain) as rig:
        rig.ask(1, letters(20, 1))  # a step of prefill
        rig.turn()
        rig.turn()
        rig.ask(2, letters(20, 2))  # one with both
        kinds.append(-1)
        while kinds[-1] != 2:
            rig.turn()
    assert kinds[:4] == [0, 1, 1, 0]
    assert set(kinds[kinds.index(-1) :]) <= {-1, 0, 2}


def test_where_it_is_not_to_yield_it_does_not(plain: Path, neighbours: Neighbours) -> None:
    with working(plain, yields=False) as rig:
        rig.ask(1, letters(20, 1))
        neighbours.waiting = 0.5
        began = time.monotonic()
        while time.monotonic() < began + 0.3:
            turn_slowly(rig)
            assert rig.threads() == 2
        assert rig.notes() == []


def test_an_answer_that_has_to_be_the_same_is_computed_as_ever(plain: Path, neighbours: Neighbours) -> None:
    """With fewer threads llama.cpp adds some numbers up in another order."""
    with working(plain) as rig:
        rig.ask(1, letters(20, 1))
        neighbours.waiting = 0.5
        until(rig, 1)
        rig.cancel(1)
        rig.ask(2, letters(20, 2), exact=True)
        for _ in range(50):
            rig.turn()
            assert rig.threads() == 2
        rig.cancel(2)
        rig.ask(3, letters(20, 3))
        rig.turn()
        assert rig.threads() == 1
        assert len(rig.notes()) == 1  # what was measured meanwhile is not held against the number


def test_beside_others_it_need_not_be_the_same_and_slows_nobody_down(plain: Path, neighbours: Neighbours) -> None:
    with working(plain) as rig:
        rig.ask(1, letters(20, 1))
        neighbours.waiting = 0.5
        until(rig, 1)
        rig.ask(2, letters(20, 2), exact=True)
        for _ in range(20):
            rig.turn()
            assert rig.threads() == 1


def test_with_one_thread_left_nothing_is_computed_aside(plain: Path, neighbours: Neighbours) -> None:
    with working(plain) as rig:
        rig.ask(1, letters(20, 1))
        neighbours.waiting = 0.5
        until(rig, 1)
        found = rig.ask(2, letters(600, 2))
        for _ in range(3):
            rig.turn()
            assert not rig.is_aside()
        assert found.computed > 0  # it goes along in the steps of the other one
        rig.cancel(2)
        neighbours.waiting, neighbours.idle = 0.0, 1.0
        until(rig, 2)
        rig.ask(3, letters(600, 3))
        rig.turn()
        rig.turn()
        assert rig.is_aside()
        assert rig.threads() == 1  # the other one computes aside


def test_what_was_measured_beside_one_that_is_computed_aside_does_not_count(
    plain: Path, neighbours: Neighbours
) -> None:
    with working(plain) as rig:
        rig.ask(1, letters(20, 1))
        turn_for(rig, 0.1)
        rig.ask(2, letters(1200, 2))
        rig.turn()
        assert rig.is_aside()
        neighbours.waiting = 0.5
        deadline = time.monotonic() + PATIENCE_S
        while rig.is_aside():
            turn_slowly(rig)
            assert time.monotonic() < deadline
        neighbours.now()
        neighbours.waiting = 0.0
        turn_for(rig, 0.1)
        assert rig.notes() == []
