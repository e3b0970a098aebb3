"""What has arrived for one stream and was not read yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from edged.client.errors import EdgedError, SlowConsumer
from edged.wire.messages import Status

#: A message of the reply as it came; a status card of the node; or what ends the stream from outside.
Item = bytes | Status | EdgedError

#: What an item costs beyond its payload, bytes, so that a flood of empty messages is bounded too.
_OVERHEAD = 128


class Inbox:
    """A bounded buffer between the one thread that reads the network and the one reader of a stream.

    When more than `buffer_bytes` would wait, the stream is given up: `SlowConsumer` follows what is already there, and
    everything later is dropped. Blocking instead would hold up all other streams of the connection. A reader that
    keeps up is never too slow: one message, however long, is always taken.
    """

    def __init__(self, buffer_bytes: int, wake: Callable[[], None]) -> None:
        """Begin empty.

        Args:
            buffer_bytes: the bound.
            wake: tells the reader that something came; called in the network thread, must not block or raise.
        """
        self._limit = buffer_bytes
        self._wake = wake
        self._items: deque[Item] = deque()
        # Two counters with one writer each, so that neither thread needs a lock.
        self._put_bytes = 0
        self._taken_bytes = 0
        self._closed = False

    def put(self, item: Item) -> bool:
        """Add what has arrived; False when this was too much, and only then."""
        if self._closed:
            return True
        waiting = self._put_bytes - self._taken_bytes
        cost = _cost(item)
        self._put_bytes += cost
        full = waiting > 0 and cost > 0 and waiting + cost > self._limit
        if full:
            self._closed = True
            item = SlowConsumer(self._limit)
        self._items.append(item)
        self._wake()
        return not full

    def take(self) -> Item | None:
        """The oldest item; None when nothing waits."""
        try:
            item = self._items.popleft()
        except IndexError:
            return None
        self._taken_bytes += _cost(item)
        return item

    def wake(self) -> None:
        """Make the reader look again, though nothing has come."""
        self._wake()


def _cost(item: Item) -> int:
    return _OVERHEAD + len(item) if isinstance(item, bytes) else 0
