"""One request on its way, for `Stream` and `AsyncStream` alike: everything but the waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from edged.client.commands import Cancel, Leave, Replay, Route, Send
from edged.client.connection import Connection
from edged.client.errors import NodeUnavailable, NotFinished, StreamRestarted
from edged.client.exchange import Exchange
from edged.client.inbox import Inbox
from edged.client.link import Link
from edged.client.presence import GONE
from edged.client.request import Order
from edged.wire.messages import Chunk, Final
from edged.wire.stream import Remainder, Restarted, Result, StreamEvent
from edged.wire.topics import Kind, RequestPath, Topics

#: A piece of the answer: a chunk as it came, or text that no chunk brought and the final made good.
Text: TypeAlias = Chunk | Remainder

#: The longest single wait, seconds: what every platform's clocks can hold.
_LONGEST_S = 3600.0
#: No wait is shorter, seconds, lest rounding make it a busy one.
_TICK_S = 0.001


class Call:
    """A request and its reply.

    Attributes:
        id: the request's id.
    """

    def __init__(self, order: Order, kind: Kind, link: Link) -> None:
        """Nothing is sent yet.

        Args:
            order: the request.
            kind: `Kind.REQ` for a stream, `Kind.ASK` for the final alone.
            link: the client's.
        """
        self._connection: Connection | None = None
        self._route: Route | None = None
        self._exchange: Exchange | None = None
        self._closed = False
        self._has_spoken = False  # text of the current generation was handed out
        self._order = order
        self._link = link
        self._kind = kind
        self.id = order.id

    def __del__(self) -> None:
        self._leave()

    @property
    def node(self) -> str | None:
        """The node that was asked; None before the request is sent."""
        return None if self._route is None else self._route.node

    @property
    def result(self) -> Result:
        """The whole answer, proven to be complete.

        Raises:
            NotFinished: it is not there, or not yet.
        """
        if self._exchange is None or self._exchange.result is None:
            raise NotFinished
        return self._exchange.result

    @property
    def text(self) -> str:
        """All of the answer's text.

        Raises:
            NotFinished: it is not there, or not yet; `text_so_far` has what came.
        """
        return self.result.text

    @property
    def text_so_far(self) -> str:
        """What came in order: a part of the answer, until `result` is there."""
        return "" if self._exchange is None else self._exchange.text_so_far

    @property
    def final(self) -> Final | None:
        """The last message, with finish reason and metrics; None until the stream has ended."""
        return self._exchange.final if self._exchange is not None and self._exchange.is_over else None

    def cancel(self) -> None:
        """Ask the node to stop: the stream goes on to its final, whose `finish_reason` tells. Again is harmless."""
        connection, route, exchange = self._connection, self._route, self._exchange
        if route is None or exchange is None:
            self._closed = True  # and will not be sent
        elif connection is not None:
            exchange.cancel(time.monotonic())
            connection.submit(Cancel(route))
            route.inbox.wake()  # the reader has a new deadline

    def close(self) -> None:
        """Stop reading: the request is cancelled unless it has ended. Iterating ends, in other threads too."""
        self._drop()
        if self._route is None:
            self._closed = True  # and will not be sent
        else:
            self._route.inbox.wake()

    def _drop(self) -> None:
        """As `close`, for finalisers: touches no lock. What the stream has failed with is raised again all the same."""
        self._leave()
        if self._exchange is not None:
            self._closed = self._exchange.failure is None

    def _leave(self) -> None:
        """Take in nothing more, and cancel the request unless it has ended."""
        connection, self._connection = self._connection, None
        if connection is not None and self._route is not None and self._exchange is not None:
            connection.submit(Leave(self._route, ended=self._exchange.final is not None))

    def _send(self, connection: Connection, node: str, wake: Callable[[], None]) -> None:
        """Publish the request.

        Raises:
            NodeUnavailable: the node's card says that nobody is there.
        """
        settings = self._link.settings
        card = connection.cards.get(node)
        if card is not None and card.state in GONE:
            raise NodeUnavailable(node, f"its status card says {card.state!r}", state=card.state)
        topics, path = Topics(node, settings.topic_root), RequestPath(self.id, self._link.client)
        inbox = Inbox(settings.buffer_bytes, wake)
        self._route = Route(self.id, node, topics.of(self._kind, path), topics.of(Kind.CTL, path), inbox)
        self._exchange = Exchange(
            self._order, node, streamed=self._kind is Kind.REQ, settings=settings, now=time.monotonic()
        )
        self._connection = connection
        connection.submit(Send(self._route, self._order.payload))

    @property
    def _is_over(self) -> bool:
        """Whether there is nothing more to read."""
        exchange = self._exchange
        return self._closed or (exchange is not None and exchange.result is not None and not exchange.events)

    def _poll(self) -> StreamEvent | None:
        """The next event; None when none is there, or none will be (`_is_over`).

        Raises:
            EdgedError: why the stream ends here.
        """
        exchange, route = self._exchange, self._route
        if exchange is None or route is None or self._is_over:
            return None
        now = time.monotonic()
        while not exchange.events and not exchange.is_over and (item := route.inbox.take()) is not None:
            exchange.feed(item, now)
        if not exchange.events:
            exchange.expire(now)
            if (wanted := exchange.wanted()) is not None and self._connection is not None:
                self._connection.submit(Replay(route, wanted))
        if exchange.is_over:
            self._leave()
        if exchange.events:
            return exchange.events.popleft()
        if exchange.failure is not None:
            raise exchange.failure
        return None

    def _patience(self) -> float:
        """How long to wait for a wake-up before the next `_poll`, seconds."""
        deadline = None if self._exchange is None else self._exchange.deadline
        return _LONGEST_S if deadline is None else min(_LONGEST_S, max(_TICK_S, deadline - time.monotonic()))

    def _text_of(self, event: StreamEvent) -> Text | None:
        """What an event adds to the text; None where it adds nothing.

        Raises:
            StreamRestarted: it voids text that was handed out.
        """
        if isinstance(event, Restarted) and self._has_spoken:
            self._has_spoken = False
            raise StreamRestarted(event.gen)
        if isinstance(event, Chunk | Remainder) and event.text:
            self._has_spoken = True
            return event
        return None
