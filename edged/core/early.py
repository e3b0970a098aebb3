"""Control messages that came before the request that they are about.

They come on another connection than requests, so that they never wait behind them, and so may overtake them.
"""

from __future__ import annotations

from typing import NamedTuple

from edged.core.events import MessageArrived, Now
from edged.core.records import Key

#: How long a request may come after a control message that is about it, seconds.
_PATIENCE_S = 2.0
#: So many control messages wait for their request; more are answered at once.
_MOST = 256


class _Waiting(NamedTuple):
    until: float
    event: MessageArrived
    for_good: bool


class Early:
    """The control messages that wait for their request, one for each: the last, or the first that is for good."""

    def __init__(self) -> None:
        self._waiting: dict[Key, _Waiting] = {}

    def put(self, key: Key, event: MessageArrived, now: Now, *, for_good: bool) -> bool:
        """Have one wait, after which no other matters if it is for good; whether there is room for it."""
        before = self._waiting.get(key)
        if before is None and len(self._waiting) >= _MOST:
            return False
        if before is None or not before.for_good:
            self._waiting[key] = _Waiting(before.until if before else now.mono + _PATIENCE_S, event, for_good)
        return True

    def take(self, key: Key) -> MessageArrived | None:
        """The one that waits for this request, which is here now."""
        found = self._waiting.pop(key, None)
        return found.event if found else None

    @property
    def next(self) -> float | None:
        """When the first of them has waited long enough, monotonic seconds; None where none waits."""
        return next(iter(self._waiting.values())).until if self._waiting else None

    def passed(self, now: Now) -> MessageArrived | None:
        """Take out one that has waited long enough in vain; None where there is none."""
        due = self.next
        if due is None or due > now.mono:
            return None
        return self._waiting.pop(next(iter(self._waiting))).event
