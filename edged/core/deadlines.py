"""When requests run out of time."""

from __future__ import annotations

import heapq

from edged.core.events import Now
from edged.core.stream import State, Stream

#: So many ended requests may lie in the heap besides as many as are alive, before it is cleaned.
_SLACK = 64


class Deadlines:
    """The deadlines of all requests that have not ended, the next one first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Stream]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, stream: Stream, alive: int) -> None:
        """Remember a deadline; `alive` is how many requests have not ended."""
        if len(self._heap) > 2 * alive + _SLACK:  # most of them are of streams that have ended
            self._heap = [entry for entry in self._heap if entry[2].state is not State.ENDED]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (stream.deadline, stream.uid, stream))

    @property
    def next(self) -> float | None:
        """When the next one is due at the earliest, monotonic seconds."""
        return self._heap[0][0] if self._heap else None

    def passed(self, now: Now) -> Stream | None:
        """Take out a request whose deadline has passed; None where there is none."""
        while self._heap and (self._heap[0][2].state is State.ENDED or self._heap[0][0] <= now.mono):
            stream = heapq.heappop(self._heap)[2]
            if stream.state is not State.ENDED:
                return stream
        return None
