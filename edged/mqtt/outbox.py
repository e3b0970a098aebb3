"""What is to be published, in order, and what of it is on its way. Pure: it says what to send, and sends nothing."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from edged.core.events import Publish


class Sending(NamedTuple):
    """A message to hand to the broker now; `handle` names it until it is confirmed."""

    handle: int
    publication: Publish


class Outbox:
    """One publisher, one bounded window, strictly in order.

    MQTT keeps the order of messages on one connection only. So a connection that ends puts everything unconfirmed back
    to the front, and the next one sends it first; in between nothing is sent. Copies are possible, gaps and overtaking
    are not. Handles rise with every message and keep their message through all connections.

    A retained message that waits is dropped when a newer one of its topic comes, unless somebody waits for its token:
    the broker would keep the newest only.

    Args:
        capacity: QoS 0 messages are not taken while so many wait. QoS 1 messages always are: their sender bounds them.
    """

    def __init__(self, *, capacity: int) -> None:
        self._capacity = capacity
        self._window = 0
        self._next = 0
        self._waiting: OrderedDict[int, Publish] = OrderedDict()
        self._under_way: OrderedDict[int, Publish] = OrderedDict()
        #: Topic to handle of retained messages without a token that wait.
        self._retained: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._under_way)

    def takes(self, publication: Publish) -> bool:
        """Whether `put` may be called: not for a QoS 0 message when it is full."""
        return publication.qos > 0 or len(self) < self._capacity

    def put(self, publication: Publish) -> list[Sending]:
        """Add a message at the end; what to send now."""
        if publication.retain:
            self._supersede(publication)
        self._waiting[self._next] = publication
        self._next += 1
        return self._release()

    def opened(self, window: int) -> list[Sending]:
        """The broker is ready for `window` messages at a time, which is at least 1; what to send now."""
        self._window = window
        return self._release()

    def closed(self) -> None:
        """The connection is gone: what is not confirmed waits again, in its old place."""
        self._window = 0
        while self._under_way:
            handle, publication = self._under_way.popitem()
            self._waiting[handle] = publication
            self._waiting.move_to_end(handle, last=False)

    def confirmed(self, handle: int) -> list[Sending]:
        """The broker has a message, or has refused it for good; what to send now.

        Raises:
            KeyError: the message is not on its way.
        """
        del self._under_way[handle]
        return self._release()

    def _supersede(self, publication: Publish) -> None:
        older = self._retained.pop(publication.topic, None)
        if older is not None:
            del self._waiting[older]
        if publication.token is None:
            self._retained[publication.topic] = self._next

    def _release(self) -> list[Sending]:
        sent = []
        while self._waiting and len(self._under_way) < self._window:
            handle, publication = self._waiting.popitem(last=False)
            if self._retained.get(publication.topic) == handle:
                del self._retained[publication.topic]
            self._under_way[handle] = publication
            sent.append(Sending(handle, publication))
        return sent
