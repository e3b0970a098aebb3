"""The client for threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self, Unpack

from edged.client.call import Call, Text
from edged.client.commands import Watch
from edged.client.connection import Connection
from edged.client.link import Link
from edged.client.request import Fields, Order, Prompt, compose
from edged.client.settings import Options, Settings
from edged.wire.stream import Result, StreamEvent
from edged.wire.topics import Kind

#: How long `close` waits for the connection's thread, seconds; it needs less.
_JOIN_S = 3.0


class Stream(Call):
    """An answer while it is generated: iterate over it, once, from one thread.

    Leaving the loop early (`break`, an exception, the end of a `with` block) cancels the request. `next(stream)` takes
    single pieces and cancels nothing. After the end `text`, `final` and `result` are there.
    """

    def __init__(self, order: Order, kind: Kind, link: Link, connection: Connection, node: str) -> None:
        """Send the request: `Client.stream` makes these."""
        super().__init__(order, kind, link)
        self._woken = threading.Event()
        self._send(connection, node, self._woken.set)

    def __iter__(self) -> Iterator[Text]:
        """The pieces of text, in order and without a gap.

        Raises:
            EdgedError: the stream does not end well; which one says why.
        """
        try:
            while (piece := self._next_text()) is not None:
                yield piece
        finally:
            self._drop()

    def __next__(self) -> Text:
        if (piece := self._next_text()) is None:
            raise StopIteration
        return piece

    def events(self) -> Iterator[StreamEvent]:
        """Everything that comes, `Completed` last: also `accepted`, `progress`, `Gap`, `Restarted`.

        Raises:
            EdgedError: as iterating does, but a restart is an event.
        """
        try:
            while (event := self._next_event()) is not None:
                yield event
        finally:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _next_event(self) -> StreamEvent | None:
        while not self._is_over:
            if (event := self._poll()) is not None:
                return event
            if not self._is_over:
                self._woken.wait(self._patience())
                self._woken.clear()
        return None

    def _next_text(self) -> Text | None:
        while (event := self._next_event()) is not None:
            if (piece := self._text_of(event)) is not None:
                return piece
        return None


class Client:
    """A way to ask nodes, over one connection to the broker, for any number of streams and threads at once.

    The connection is opened by the first request, and again by the next one after a loss. Use it as a context manager,
    or call `close`.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        """Keep the options; nothing is opened yet.

        Args:
            options: the fields of `Settings`, which explains them.

        Raises:
            ValueError: a value that cannot work.
        """
        self._link = Link(Settings(**options))

    @property
    def name(self) -> str:
        """The CLIENT level of this client's topics."""
        return self._link.client

    def connect(self) -> str:
        """Connect and find the node now, not with the first request; returns the node's name.

        Raises:
            NotConnected: the broker cannot be reached or does not let us in.
            NodeUndecided: no node was named, and there is not exactly one to choose.
        """
        return self._arrive()[1]

    def stream(self, prompt: Prompt, /, **fields: Unpack[Fields]) -> Stream:
        """Send a request; its answer is streamed.

        Args:
            prompt: the user's text, or the conversation so far.
            fields: of the request, e.g. `max_tokens=100`.

        Raises:
            InvalidRequest: the request breaks the contract; nothing was sent.
            NotConnected: the broker cannot be reached or does not let us in.
            NodeUndecided: no node was named, and there is not exactly one to choose.
            NodeUnavailable: the node's status card says that it is gone.
        """
        return self._start(prompt, fields, Kind.REQ)

    def ask(self, prompt: Prompt, /, **fields: Unpack[Fields]) -> Result:
        """Send a request and wait for the whole answer, which comes as one message.

        Args:
            prompt: the user's text, or the conversation so far.
            fields: of the request, e.g. `max_tokens=100`.

        Raises:
            EdgedError: as `stream`, and whatever ends the answer before it is whole.
        """
        with self._start(prompt, fields, Kind.ASK) as stream:
            for _ in stream.events():
                pass
            return stream.result

    def close(self) -> None:
        """Cancel what is running and disconnect; what still waits raises `NotConnected`. Again is harmless."""
        connection = self._link.close()
        if connection is not None:
            connection.join(_JOIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, prompt: Prompt, fields: Fields, kind: Kind) -> Stream:
        order = compose(prompt, fields)
        return Stream(order, kind, self._link, *self._arrive())

    def _arrive(self) -> tuple[Connection, str]:
        """A connection that is ready, and the node."""
        connection = self._link.connection()
        woken = threading.Event()
        connection.submit(Watch(woken.set))
        try:
            while (node := self._link.node(connection)) is None:
                woken.wait(self._link.patience(connection))
                woken.clear()
        finally:
            connection.submit(Watch(woken.set, on=False))
        return connection, node
