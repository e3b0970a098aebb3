"""The time of a world, and what happens in it when."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from edged.core.events import Now

#: The wall clock when a world begins, Unix seconds.
_EPOCH = 1_700_000_000.0
#: What the monotonic clock shows right after a boot, seconds.
_BOOTED = 20.0


class Clock:
    """Real time, which only the simulation knows, and the two clocks that the machine shows.

    Attributes:
        time: seconds since the world began.
        boots: how often the machine has booted.
    """

    def __init__(self) -> None:
        self.time = 0.0
        self.boots = 1
        self._booted_at = 0.0
        self._ahead = 0.0

    @property
    def now(self) -> Now:
        return Now(_BOOTED + self.time - self._booted_at, _EPOCH + self.time + self._ahead)

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self._ahead += seconds

    def reboot(self) -> None:
        """The monotonic clock starts again."""
        self.boots += 1
        self._booted_at = self.time


class Agenda:
    """What is to happen, in order of time, and of planning where that is the same."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, time: float, call: Callable[[], None]) -> None:
        """Plan something for a point in real time."""
        heapq.heappush(self._heap, (max(time, self._clock.time), next(self._number), call))

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Plan something for so much later."""
        self.at(self._clock.time + seconds, call)

    def run(self, until: float) -> int:
        """Let everything happen that is due until then; how much that was."""
        count = 0
        while self._heap and self._heap[0][0] <= until:
            self._clock.time, _, call = heapq.heappop(self._heap)
            call()
            count += 1
        self._clock.time = max(self._clock.time, until)
        return count
