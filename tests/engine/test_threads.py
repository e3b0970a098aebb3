"""With how many threads the engine computes beside others: judged by scripted clocks, and by the kernel's."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from edged.engine.threads import Clocks, Threads

STEP_S = 0.05


@dataclass
class Machine:
    """Runs an engine whose steps follow each other, beside whatever the test says."""

    most: int = 4
    fixed: bool = False
    now: float = 100.0
    clocks: Clocks | None = field(default_factory=lambda: Clocks(7.0, 5000.0))
    reads: int = 0
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.threads = Threads(self.most, fixed=self.fixed, clocks=self.read)
        self.threads.forget(self.now)

    def read(self) -> Clocks | None:
        self.reads += 1
        return self.clocks

    def wait(self, seconds: float, *, waiting: float = 0.0, idle: float = 0.0) -> None:
        """Let time go by."""
        self.now += seconds
        if self.clocks is not None:
            self.clocks = Clocks(self.clocks.waited + waiting * seconds, self.clocks.idle + idle * seconds)

    def run(
        self,
        seconds: float,
        *,
        waiting: float = 0.0,
        idle: float = 0.0,
        busy: float = 1.0,
        slow: float = 2.0,
        kind: int = 0,
    ) -> list[int]:
        """Steps for so many seconds; returns the counts that there were, after the first one.

        Args:
            waiting: threads of ours that have no core, on average.
            idle: cores with nothing to do.
            busy: part of the time in which the engine computes.
            slow: with all threads a step takes so many times as long as with fewer.
            kind: of all steps.
        """
        counts = [self.threads.count]
        for _ in range(round(seconds / STEP_S)):
            self.wait(STEP_S, waiting=waiting, idle=idle)
            step_s = busy * STEP_S * (slow if self.threads.count == self.most else 1.0)
            if news := self.threads.note(self.now, step_s, kind):
                self.told.append(news)
            if self.threads.count != counts[-1]:
                counts.append(self.threads.count)
        return counts[1:]


def test_alone_it_uses_all_of_them() -> None:
    assert Machine().run(20, waiting=0.15, idle=0.1) == []


def test_a_neighbour_gets_its_core_and_ours_come_back_when_it_is_gone() -> None:
    machine = Machine()
    assert machine.run(2.2, waiting=0.5) == [3]
    assert machine.run(30, waiting=0.1) == []
    assert machine.run(2.2, idle=0.95) == [4]


def test_several_neighbours_get_several_but_never_the_last() -> None:
    machine = Machine(most=3)
    assert machine.run(20, waiting=1.0) == [2, 1]
    assert machine.run(20, idle=2.0) == [2, 3]


def test_one_that_is_let_go_rests_before_it_comes_back() -> None:
    machine = Machine()
    machine.run(2.2, waiting=0.5)
    assert machine.run(3, idle=1.0) == []
    assert machine.run(4, idle=1.0) == [4]


def test_each_time_in_vain_it_rests_for_longer_but_not_for_ever() -> None:
    """A neighbour that comes and goes: the core looks free, and is not as soon as it is taken."""
    machine = Machine(most=2)
    machine.run(2.2, waiting=0.5)
    rests = []
    for _ in range(7):
        before = machine.now
        while not machine.run(1, idle=1.0):
            assert machine.now < before + 100
        rests.append(machine.now - before)
        assert machine.run(2.2, waiting=0.5) == [1]
    assert rests == pytest.approx([5, 10, 20, 40, 60, 60, 60], abs=2.5)
    machine.run(61, idle=0.9)
    assert machine.threads.count == 2
    machine.run(60)  # this time it was right
    assert machine.run(2.2, waiting=0.5) == [1]
    assert machine.run(7, idle=1.0) == [2]


def test_where_steps_become_no_faster_it_comes_back_at_once_and_that_is_not_told() -> None:
    machine = Machine()
    assert machine.run(4, waiting=0.5, slow=0.9, kind=8) == [3, 4]
    assert machine.told == []


def test_a_few_steps_that_stand_still_count_more_than_many_quick_ones() -> None:
    """A thread that has no core holds the other one up for milliseconds, hundreds of times in one step and then not."""
    machine = Machine(most=2)
    machine.run(1.2, waiting=0.9, kind=1, slow=0.5)
    for step_s in (2.0, 0.01, 0.01):
        machine.wait(step_s, waiting=0.9)
        machine.threads.note(machine.now, step_s, 1)
    machine.run(3, waiting=0.9, kind=1, slow=0.5)
    assert machine.threads.count == 1
    assert len(machine.told) == 1


def test_it_is_told_when_it_has_proved_right() -> None:
    machine = Machine(most=2)
    assert machine.run(2.2, waiting=0.5, kind=8) == [1]
    assert machine.told == []
    machine.run(1, waiting=0.1, kind=8)
    assert machine.told == ["computing with 1 of 2 threads: other programs want the cores"]
    machine.run(10, idle=1.0, kind=8)
    assert machine.told[1:] == ["computing with 2 of 2 threads: the cores are free again"]


def test_what_was_in_vain_is_tried_again_ever_more_seldom() -> None:
    machine = Machine(most=2)
    tried = []
    while machine.now < 2000:
        if machine.run(STEP_S, waiting=0.5, slow=0.9, kind=8) == [1]:
            tried.append(machine.now)
    pauses = [after - before for before, after in pairwise(tried)]
    assert pauses[:6] == pytest.approx([11, 21, 41, 81, 161, 301], abs=2.5)
    assert max(pauses) == pytest.approx(301, abs=2.5)
    assert machine.run(310, waiting=0.5, kind=8) == [1]  # this time it was right
    assert machine.run(10, idle=1.0, kind=8) == [2]
    assert machine.run(4, waiting=0.5, slow=0.9, kind=8) == [1, 2]
    assert machine.run(13, waiting=0.5, slow=0.9, kind=8) == [1, 2]  # so the pause is short again


def test_what_was_in_vain_for_many_streams_may_be_right_for_one() -> None:
    machine = Machine(most=2)
    assert machine.run(4, waiting=0.5, slow=0.9, kind=8) == [1, 2]
    assert machine.run(2.2, waiting=0.5, kind=1) == [1]


def test_what_was_in_vain_is_tried_again_at_once_where_it_would_help_now() -> None:
    machine = Machine(most=2)
    assert machine.run(4, waiting=0.5, slow=0.9, kind=1) == [1, 2]
    assert machine.run(4, waiting=0.5, slow=1.4, kind=1) == []
    assert machine.run(2.2, waiting=0.5, slow=1.6, kind=1) == [1]


def test_what_was_in_vain_for_the_second_thread_may_be_right_for_the_first() -> None:
    machine = Machine(most=4)
    assert machine.run(2.2, waiting=0.5, kind=8) == [3]
    assert machine.run(2.2, waiting=0.5, kind=8) == [2, 3]  # as slow with two as with three
    assert machine.run(8, idle=1.0, kind=8) == [4]
    assert machine.run(2.2, waiting=0.5, slow=1.4, kind=8) == [3]


def test_steps_with_a_prompt_say_nothing_of_those_without() -> None:
    """All the waiting was in one step with a prompt; the others were as quick as ever."""
    machine = Machine(most=2)
    machine.run(1.05, waiting=0.9)
    for kind, step_s in ((1, 0.02), (1, 0.02), (1, 0.02), (0, 1.0)):
        machine.wait(step_s, waiting=0.9)
        machine.threads.note(machine.now, step_s, kind)
    machine.run(4, kind=1, slow=0.5)
    assert machine.threads.count == 1


def test_steps_are_compared_with_their_like() -> None:
    machine = Machine(most=2)
    assert machine.run(2.2, waiting=0.5, kind=1) == [1]
    machine.run(3, slow=0.1, kind=8)  # eight take longer, whatever else is
    assert machine.threads.count == 1
    assert machine.told == []
    machine.run(8, kind=8)  # and none of the other kind has come
    assert machine.told == ["computing with 1 of 2 threads: other programs want the cores"]


def test_what_was_measured_while_it_hardly_computed_says_nothing() -> None:
    assert Machine().run(20, waiting=0.5, busy=0.25) == []


def test_nor_does_what_was_forgotten() -> None:
    machine = Machine()
    for _ in range(30):
        assert machine.run(0.9, waiting=1.0) == []
        machine.threads.forget(machine.now)


def test_where_it_is_not_to_yield_it_does_not() -> None:
    machine = Machine(fixed=True)
    assert machine.run(20, waiting=2.0) == []
    assert machine.reads == 0


def test_one_thread_has_nothing_to_look_for() -> None:
    machine = Machine(most=1)
    assert machine.run(20, waiting=2.0, idle=3.0) == []
    assert machine.reads == 0


def test_where_the_kernel_does_not_tell_nothing_changes() -> None:
    assert Machine(clocks=None).run(20) == []


def test_the_clocks_are_read_once_a_second() -> None:
    machine = Machine()
    machine.run(30)
    assert machine.reads <= 30


def test_the_kernel_tells_how_long_threads_had_no_core() -> None:
    """Three threads on one CPU: two of them wait at any time, whatever else the machine does."""
    allowed = os.sched_getaffinity(0)
    over = threading.Event()

    def churn() -> None:  # a large hash is computed without Python's lock
        os.sched_setaffinity(0, {min(allowed)})
        block = bytes(1 << 22)
        while not over.is_set():
            hashlib.sha256(block)

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.2)
        before = Clocks.now()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(0.2)
            after = Clocks.now()
            assert before is not None
            assert after is not None
            if after.waited - before.waited > 0.5:
                break
        else:
            pytest.fail("three threads shared a CPU for 30 s, and none of them ever waited")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert after.idle >= before.idle > 0
