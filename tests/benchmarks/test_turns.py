"""Sides that have the machine in turns: one stands still while the other runs, and its clock with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.turns import Clock, Turns

PATIENCE_S = 30.0


@contextmanager
def sleeper() -> Iterator[int]:
    """A process that does nothing until it is told to end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_clock_stands_still_between_the_turns() -> None:
    clock = Clock([(10.0, 11.0), (13.0, 15.0), (20.0, float("inf"))])
    moments = [9.0, 10.0, 10.5, 11.0, 12.9, 13.5, 15.0, 19.0, 20.0, 21.5]
    assert [clock.at(moment) for moment in moments] == pytest.approx([0, 0, 0.5, 1, 1, 1.5, 3, 3, 3, 4.5])


def test_one_side_stands_still_while_the_other_has_its_turn() -> None:
    with sleeper() as left, sleeper() as right, sleeper() as other:
        seen = set[tuple[bool, bool]]()
        with Turns({"left": [left, other], "right": [right]}, 0.02):
            deadline = time.monotonic() + PATIENCE_S
            while len(seen & {(False, True), (True, False)}) < 2 and time.monotonic() < deadline:
                seen.add((is_stopped(left) and is_stopped(other), is_stopped(right)))
        assert {(False, True), (True, False)} <= seen
        assert not any(map(is_stopped, (left, right, other)))


def test_the_clocks_share_the_time_and_go_on_together_afterwards() -> None:
    with sleeper() as left, sleeper() as right:
        begin = time.monotonic()
        with Turns({"left": [left], "right": [right]}, 0.02) as turns:
            while len(turns.clocks["right"].turns) < 3 and time.monotonic() < begin + PATIENCE_S:
                time.sleep(0.01)
        end = time.monotonic()
        ours, theirs = turns.clocks["left"], turns.clocks["right"]
        assert ours.turns[0][0] < theirs.turns[0][0]  # the first one begins
        assert 0 < ours.at(end) + theirs.at(end) <= 2 * (end - begin)
        assert ours.at(end + 5) - ours.at(end) == pytest.approx(5) == theirs.at(end + 5) - theirs.at(end)
        together = sorted([*ours.turns[:-1], *theirs.turns[:-1]])
        assert all(a[1] <= b[0] for a, b in pairwise(together))


def fail_after_the_end_of(pid: int, turns: Turns) -> None:
    with turns:
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        raise ValueError("wrong")


def test_both_go_on_when_the_block_fails_and_one_that_ends_does_no_harm() -> None:
    with sleeper() as left, sleeper() as right:
        with pytest.raises(ValueError, match="wrong"):
            fail_after_the_end_of(left, Turns({"left": [left], "right": [right]}, 0.01))
        assert not is_stopped(right)
