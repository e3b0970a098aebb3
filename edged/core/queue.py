"""Who waits, and who comes next: by priority, then the client that runs least, then the order of arrival."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from edged.core.stream import Stream
from edged.wire.request import Priority

_ORDER: tuple[Priority, ...] = ("high", "normal", "low")


class WaitingQueue:
    """The accepted requests that have no place in an engine yet. Bounded by its user."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, Priority], dict[str | None, deque[Stream]]] = {}
        self._per_client: Counter[str | None] = Counter()
        self._served: dict[str | None, int] = {}  # client: the turn in which it was served last
        self._turn = 0
        #: Those that want to hear how far their turn is.
        self.watched: dict[int, Stream] = {}

    def __len__(self) -> int:
        return self._per_client.total()

    def __iter__(self) -> Iterator[Stream]:
        """All that wait, in no particular order."""
        for lane in self._lanes.values():
            for line in lane.values():
                yield from line

    def of_client(self, client: str | None) -> int:
        """How many requests of a client wait."""
        return self._per_client[client]

    def waits(self, model: str) -> bool:
        """Whether any request for a model waits."""
        return any((model, priority) in self._lanes for priority in _ORDER)

    def add(self, stream: Stream) -> None:
        """Put a request at the end of its client's line."""
        lane = self._lanes.setdefault((stream.model, stream.request.priority), {})
        lane.setdefault(stream.key.client, deque()).append(stream)
        self._per_client[stream.key.client] += 1
        if stream.request.progress:
            self.watched[stream.uid] = stream

    def remove(self, stream: Stream) -> None:
        """Take a request out that will not run."""
        self._take(stream, (stream.model, stream.request.priority))

    def next(self, model: str, running: Counter[str | None]) -> Stream | None:
        """Take out the request of a model that comes next; `running` counts each client's running requests."""
        for priority in _ORDER:
            lane = self._lanes.get((model, priority))
            if lane:
                client = min(lane, key=lambda c: (running[c], self._served.get(c, 0)))
                stream = lane[client][0]
                self._take(stream, (model, priority))
                self._turn += 1
                self._served[client] = self._turn
                self._forget_idle(running)
                return stream
        return None

    def ahead_of(self, stream: Stream) -> int:
        """How many waiting requests of the same model come before it, as far as that is settled."""
        ahead = 0
        for priority in _ORDER:
            lane = self._lanes.get((stream.model, priority), {})
            if priority != stream.request.priority:
                ahead += sum(map(len, lane.values()))
                continue
            line = lane.get(stream.key.client, deque())
            place = line.index(stream) if stream in line else len(line)
            others = (min(len(o), place + 1) for c, o in lane.items() if c != stream.key.client)
            return ahead + place + sum(others)
        return ahead

    def _take(self, stream: Stream, lane_key: tuple[str, Priority]) -> None:
        lane = self._lanes[lane_key]
        line = lane[stream.key.client]
        line.remove(stream)
        self.watched.pop(stream.uid, None)
        if not line:
            del lane[stream.key.client]
        if not lane:
            del self._lanes[lane_key]
        self._per_client[stream.key.client] -= 1
        self._per_client += Counter()  # drops zeros, so that clients that left are forgotten

    def _forget_idle(self, running: Counter[str | None]) -> None:
        """Keep the memory of turns as small as the number of clients that are here."""
        if len(self._served) > 2 * (len(self._per_client) + len(running)) + 64:
            self._served = {c: t for c, t in self._served.items() if c in self._per_client or c in running}
