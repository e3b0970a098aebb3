"""The client for asyncio. It shares everything with the threaded one but the waiting; no call blocks the loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Generic, Self, TypeVar, Unpack

from edged.client.call import Call, Text
from edged.client.commands import Watch
from edged.client.connection import Connection
from edged.client.link import Link
from edged.client.request import Fields, Order, Prompt, compose
from edged.client.settings import Options, Settings
from edged.wire.stream import Result, StreamEvent
from edged.wire.topics import Kind

T = TypeVar("T")

#: How long `aclose` waits for the connection's end, seconds; it needs less.
_CLOSE_S = 3.0


class _Wake:
    """An `asyncio.Event` that other threads may set."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def __call__(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> None:
        """Until it is set, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()


class _Reading(AsyncIterator[T], Generic[T]):
    """A loop over a stream. Dropping it, as `break` does, ends the request."""

    def __init__(self, stream: AsyncStream, read: Callable[[], Awaitable[T | None]]) -> None:
        self._stream = stream
        self._read = read

    def __del__(self) -> None:
        self._stream._drop()  # noqa: SLF001 - a part of the stream

    async def __anext__(self) -> T:
        try:
            value = await self._read()
        except asyncio.CancelledError:
            self._stream._drop()  # noqa: SLF001 - a part of the stream
            raise
        if value is None:
            raise StopAsyncIteration
        return value


class AsyncStream(Call):
    """An answer while it is generated: `async for` over it, once, in one task.

    The request is sent when reading begins, or by `async with`. Leaving the loop early (`break`, an exception, the
    task's cancellation, the end of an `async with` block) cancels it. `anext(stream)` takes single pieces and cancels
    nothing. After the end `text`, `final` and `result` are there.
    """

    def __init__(self, order: Order, kind: Kind, link: Link) -> None:
        """Keep the request: `AsyncClient.stream` makes these."""
        super().__init__(order, kind, link)
        self._woken: _Wake | None = None

    def __aiter__(self) -> AsyncIterator[Text]:
        """The pieces of text, in order and without a gap.

        Raises:
            EdgedError: the request cannot be sent, or the stream does not end well; which one says why.
        """
        return _Reading(self, self._next_text)

    async def __anext__(self) -> Text:
        if (piece := await self._next_text()) is None:
            raise StopAsyncIteration
        return piece

    def events(self) -> AsyncIterator[StreamEvent]:
        """Everything that comes, `Completed` last: also `accepted`, `progress`, `Gap`, `Restarted`.

        Raises:
            EdgedError: as iterating does, but a restart is an event.
        """
        return _Reading(self, self._next_event)

    async def aclose(self) -> None:
        """As `close`, for `contextlib.aclosing`."""
        self.close()

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _begin(self) -> _Wake:
        """Send the request, unless it has been."""
        if self._woken is None:
            connection, node = await _arrive(self._link)
            if not self._closed and self._woken is None:
                self._woken = _Wake()
                self._send(connection, node, self._woken)
        return self._woken or _Wake()

    async def _next_event(self) -> StreamEvent | None:
        while not self._is_over:
            woken = await self._begin()
            if (event := self._poll()) is not None:
                return event
            if not self._is_over:
                await woken.wait(self._patience())
        return None

    async def _next_text(self) -> Text | None:
        while (event := await self._next_event()) is not None:
            if (piece := self._text_of(event)) is not None:
                return piece
        return None


class AsyncClient:
    """A way to ask nodes, over one connection to the broker, for any number of streams and tasks at once.

    The connection is opened by the first request, and again by the next one after a loss. Use it as an async context
    manager, or call `aclose`.
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

    async def connect(self) -> str:
        """Connect and find the node now, not with the first request; returns the node's name.

        Raises:
            NotConnected: the broker cannot be reached or does not let us in.
            NodeUndecided: no node was named, and there is not exactly one to choose.
        """
        return (await _arrive(self._link))[1]

    def stream(self, prompt: Prompt, /, **fields: Unpack[Fields]) -> AsyncStream:
        """Prepare a request whose answer is streamed; reading sends it.

        Args:
            prompt: the user's text, or the conversation so far.
            fields: of the request, e.g. `max_tokens=100`.

        Raises:
            InvalidRequest: the request breaks the contract.
        """
        return AsyncStream(compose(prompt, fields), Kind.REQ, self._link)

    async def ask(self, prompt: Prompt, /, **fields: Unpack[Fields]) -> Result:
        """Send a request and wait for the whole answer, which comes as one message.

        Args:
            prompt: the user's text, or the conversation so far.
            fields: of the request, e.g. `max_tokens=100`.

        Raises:
            EdgedError: the request cannot be sent, or whatever ends the answer before it is whole.
        """
        async with AsyncStream(compose(prompt, fields), Kind.ASK, self._link) as stream:
            async for _ in stream.events():
                pass
            return stream.result

    async def aclose(self) -> None:
        """Cancel what is running and disconnect; what still waits raises `NotConnected`. Again is harmless."""
        connection = self._link.close()
        if connection is None:
            return
        woken = _Wake()
        connection.submit(Watch(woken))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                while connection.lost is None:
                    await woken.wait(_CLOSE_S)
        if connection.lost is not None:
            connection.join(_CLOSE_S)  # its thread has nothing left to do

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


async def _arrive(link: Link) -> tuple[Connection, str]:
    """A connection that is ready, and the node."""
    connection = link.connection()
    woken = _Wake()
    connection.submit(Watch(woken))
    try:
        while (node := link.node(connection)) is None:
            await woken.wait(link.patience(connection))
    finally:
        connection.submit(Watch(woken, on=False))
    return connection, node
