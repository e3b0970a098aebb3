"""Tokens per second over the last ten seconds, and the counters that the node's metrics tell."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from edged.core.events import Now

#: What the rate looks back on, seconds.
_WINDOW_S = 10


@dataclass(slots=True)
class Meter:
    """Counts; everything starts at 0 with every boot."""

    accepted: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    ignored_retained: int = 0
    unanswered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_restarts: int = 0
    _seconds: deque[tuple[int, int]] = field(default_factory=deque)

    def tokens(self, count: int, now: Now) -> None:
        """Note generated tokens."""
        self.completion_tokens += count
        second = int(now.mono)
        if self._seconds and self._seconds[-1][0] == second:
            count += self._seconds.pop()[1]
        self._seconds.append((second, count))
        self._drop_old(second)

    def rate(self, now: Now) -> float:
        """Generated tokens per second of all streams together, over the last ten seconds."""
        self._drop_old(int(now.mono))
        return round(sum(count for _, count in self._seconds) / _WINDOW_S, 1)

    def _drop_old(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - _WINDOW_S:
            self._seconds.popleft()
