"""With how many threads to compute: where other programs want the cores, fewer are faster.

llama.cpp's threads wait for each other hundreds of times a token. One that has no core holds up all others, which spin
meanwhile. So a thread is let go when ours had to wait for a core for long, and taken back when a core stands idle.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

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
        self.count = most
        self._fixed = fixed or most == 1
        self._clocks = clocks or Clocks.now
        self._since = 0.0
        self._busy_s = 0.0
        self._before: Clocks | None = None
        self._rest_s = _REST_S[0]
        self._let_go_at = self._taken_at = float("-inf")

    def note(self, now: float, step_s: float) -> bool:
        """Note that a step has ended.

        Args:
            now: monotonic seconds.
            step_s: how long it took, seconds.

        Returns:
            Whether `count` has changed.
        """
        if self._fixed:
            return False
        self._busy_s += step_s
        elapsed = now - self._since
        if elapsed < _WINDOW_S:
            return False
        is_telling = self._busy_s >= _BUSY * elapsed
        before, after = self._before, self._clocks()
        self._begin(now, after)
        if before is None or after is None or not is_telling:
            return False
        return self._judge(now, (after.waited - before.waited) / elapsed, (after.idle - before.idle) / elapsed)

    def forget(self, now: float) -> None:
        """Let what was until now count for nothing."""
        self._begin(now, None)

    def _begin(self, now: float, clocks: Clocks | None) -> None:
        self._since, self._busy_s, self._before = now, 0.0, clocks

    def _judge(self, now: float, waiting: float, idle: float) -> bool:
        if waiting > _CROWDED and self.count > 1:
            in_vain = now - self._taken_at < 2 * _REST_S[0]
            self._rest_s = min(2 * self._rest_s, _REST_S[1]) if in_vain else _REST_S[0]
            self._let_go_at = now
            self.count -= 1
            return True
        if idle > _FREE and self.count < self.most and now - self._let_go_at >= self._rest_s:
            self._taken_at = now
            self.count += 1
            return True
        return False
