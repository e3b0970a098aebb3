"""With how many threads to compute: where other programs want the cores, fewer are faster.

llama.cpp's threads wait for each other hundreds of times a token. One that has no core holds up all others, which spin
meanwhile. So a thread is let go when ours had to wait for a core for long, and taken back when a core stands idle; or
at once, where steps have become no faster.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

#: What was measured in a shorter time says little: a hiccup is no neighbour. Seconds.
_WINDOW_S = 1.0
#: What was measured while the engine computed for a smaller part of the time says little, too.
_BUSY = 0.8
#: So many threads of ours waited for a core on average: somebody else has most of one.
_CROWDED = 0.35
#: So many cores stood idle on average: there is one for another thread.
_FREE = 0.75
#: How long a thread that was let go is not taken back, the first time and at most. It doubles each time that it had to
#: be let go again soon. Seconds.
_REST_S = (5.0, 60.0)
#: So many steps of a kind tell what one takes.
_STEPS = 3
#: Where there were no such steps for so long after a thread was let go, that is taken for right. Seconds.
_TRIAL_S = 10.0
#: How long no thread is let go again where that had made steps of a kind no faster, the first time and at most. It
#: doubles each time. Seconds.
_PAUSE_S = (10.0, 300.0)
#: Unless a step takes so many times what it took then.
_WORSE = 1.5

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds so far.

    Attributes:
        waited: in which threads of this process could have run and had no core, of all threads together.
        idle: in which the CPUs that this process may use had nothing to do, of all CPUs together.
    """

    waited: float
    idle: float

    @classmethod
    def now(cls) -> Clocks | None:
        """Read them (proc(5)); None where the kernel does not tell."""
        try:
            return cls(waited_s("self"), _idle_s(os.sched_getaffinity(0)))
        except (OSError, IndexError, ValueError):
            return None


def waited_s(process: int | str) -> float:
    """Seconds that the threads of a process have waited for a core while they could have run, all of them added up.

    0 where the kernel does not tell.
    """
    waited = 0
    for file in (_PROC / str(process) / "task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # that thread has just ended
            waited += int(file.read_text().split()[1])
    return waited / 1e9


def _idle_s(cpus: set[int]) -> float:
    names = {f"cpu{cpu}" for cpu in cpus}
    lines = ((_PROC / "stat").read_text(encoding="ascii")).splitlines()
    fields = [line.split() for line in lines if line.startswith("cpu")]
    return sum(int(one[4]) + int(one[5]) for one in fields if one[0] in names) / _TICKS  # idle and iowait


@dataclass(frozen=True, slots=True)
class _Trial:
    """A thread has been let go, and it is not known yet whether that was right.

    Attributes:
        kind: of steps by which that will be told.
        step_s: what one of them took before, on average: most of them may be quick, and a few stand still for seconds.
        since: when it was let go, monotonic seconds.
    """

    kind: int
    step_s: float
    since: float


@dataclass(frozen=True, slots=True)
class _Failed:
    """Steps were no faster with a thread less.

    Attributes:
        step_s: what one took then.
        pause_s: for how long that is not tried again.
        until: to what moment, monotonic seconds.
    """

    step_s: float
    pause_s: float
    until: float


def _most(steps: Mapping[int, list[float]]) -> tuple[int, float]:
    """The kind of most steps, and what one of them took on average; 0 where all others took longer together."""
    kind = max(steps, key=lambda one: len(steps[one]), default=0)
    taken = sum(map(sum, steps.values()))
    return (kind, fmean(steps[kind])) if kind and 2 * sum(steps[kind]) > taken else (0, 0.0)


class Threads:
    """Finds out how many to use, from what is noted after every step.

    Args:
        most: threads there may be, at least 1.
        fixed: use these, whatever others do.
        clocks: reads the clocks; None = the kernel's.

    Attributes:
        most: threads there may be.
        count: threads to use.
    """

    def __init__(self, most: int, *, fixed: bool, clocks: Callable[[], Clocks | None] | None = None) -> None:
        self.most = most
        self.count = self._told = most
        self._fixed = fixed or most == 1
        self._clocks = clocks or Clocks.now
        self._since = 0.0
        self._busy_s = 0.0
        self._steps = defaultdict[int, list[float]](list)
        self._before: Clocks | None = None
        self._rest_s = _REST_S[0]
        self._let_go_at = self._taken_at = float("-inf")
        self._trial: _Trial | None = None
        self._failed: dict[tuple[int, int], _Failed] = {}  # by threads that were too few, and kind of step

    def note(self, now: float, step_s: float, kind: int) -> str:
        """Note that a step has ended.

        Args:
            now: monotonic seconds.
            step_s: how long it took, seconds.
            kind: steps of one kind cost the same; 0 = of no kind.

        Returns:
            What there is to tell of `count`; mostly nothing.
        """
        if self._fixed:
            return ""
        self._busy_s += step_s
        self._steps[kind].append(step_s)
        elapsed = now - self._since
        if elapsed < _WINDOW_S:
            return ""
        is_telling = self._busy_s >= _BUSY * elapsed
        before, after, steps = self._before, self._clocks(), dict(self._steps)
        self._begin(now, after)
        if before is None or after is None or not is_telling:
            return ""
        return self._judge(now, (after.waited - before.waited) / elapsed, (after.idle - before.idle) / elapsed, steps)

    def forget(self, now: float) -> None:
        """Let what was until now count for nothing."""
        self._begin(now, None)

    def _begin(self, now: float, clocks: Clocks | None) -> None:
        self._since, self._busy_s, self._before = now, 0.0, clocks
        self._steps.clear()

    def _judge(self, now: float, waiting: float, idle: float, steps: Mapping[int, list[float]]) -> str:
        if self._trial is not None and not self._decide(self._trial, now, steps):
            return ""
        kind, step_s = _most(steps)
        if waiting > _CROWDED and self.count > 1 and self._is_worth_a_trial(now, kind, step_s):
            was_soon = now - self._taken_at < 2 * _REST_S[0]
            self._rest_s = min(2 * self._rest_s, _REST_S[1]) if was_soon else _REST_S[0]
            self._let_go_at = now
            self.count -= 1
            if kind:
                self._trial = _Trial(kind, step_s, now)
                return ""
        elif idle > _FREE and self.count < self.most and now - self._let_go_at >= self._rest_s:
            self._taken_at = now
            self.count += 1
        return self._news()

    def _is_worth_a_trial(self, now: float, kind: int, step_s: float) -> bool:
        failed = self._failed.get((self.count - 1, kind))
        return failed is None or now >= failed.until or step_s > _WORSE * failed.step_s

    def _decide(self, trial: _Trial, now: float, steps: Mapping[int, list[float]]) -> bool:
        """Keep to a trial, or take the thread back; whether it was kept to. Where nothing is known yet, neither."""
        known = steps.get(trial.kind, [])
        if len(known) < _STEPS:
            if now - trial.since < _TRIAL_S:
                return False
        elif (step_s := fmean(known)) >= trial.step_s:
            before = self._failed.get((self.count, trial.kind))
            pause_s = min(2 * before.pause_s, _PAUSE_S[1]) if before else _PAUSE_S[0]
            self._failed[self.count, trial.kind] = _Failed(step_s, pause_s, now + pause_s)
            self._trial = None
            self.count += 1
            return False
        self._trial = None
        self._failed.pop((self.count, trial.kind), None)
        return True

    def _news(self) -> str:
        if self.count == self._told:
            return ""
        why = "other programs want the cores" if self.count < self._told else "the cores are free again"
        self._told = self.count
        return f"computing with {self.count} of {self.most} threads: {why}"
