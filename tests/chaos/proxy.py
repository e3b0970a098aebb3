"""A TCP proxy that fails on demand, in every way in which networks do."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

HOST = "127.0.0.1"
#: Bytes read at once, and bytes that wait in one direction before nothing more is read.
_READ, _MOST = 64 * 1024, 256 * 1024
#: An order to the proxy's thread takes microseconds; this is the patience before the thread counts as dead, seconds.
_ORDER_S = 10.0


@dataclass(slots=True, eq=False)
class _Way:
    """One direction of a connection: what was read and has not been passed on, each with when that is due."""

    source: socket.socket
    sink: socket.socket
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    size: int = 0
    ended: bool = False

    @property
    def reads(self) -> bool:
        return not self.ended and self.size < _MOST


@dataclass(slots=True, eq=False)
class _Pair:
    """A client's connection and the one to the server that was made for it.

    Attributes:
        forsaken: the server's side is closed, and the client was not told: what it sends goes nowhere.
    """

    client: socket.socket
    server: socket.socket
    ways: tuple[_Way, _Way]
    forsaken: bool = False

    def close(self, *, rst: bool = False) -> None:
        for one in (self.client, self.server):
            if rst and one.fileno() >= 0:
                # No lingering: what is unsent is thrown away, and the peer gets a RST instead of a FIN.
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()


class Proxy:
    """Listens on a port of 127.0.0.1 and passes on to another, until told otherwise.

    One thread serves all connections, between `__enter__` and `__exit__`. Every method may be called from any other
    thread, and what it does is done when it returns. A fault concerns all connections that are there;
    `freeze`, `delay`, `throttle` and `refuse` also those to come, until they are taken back.
    """

    def __init__(self, upstream: int) -> None:
        """Nothing is opened yet; `upstream` is the server's port."""
        self.port = 0
        self._upstream = upstream
        self._orders: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)
        self._pairs: list[_Pair] = []
        self._open = True  # the proxy lives
        self._frozen = False
        self._delay_s = 0.0
        self._rate = 0.0  # bytes a second, 0 = as fast as it goes
        self._allowed = 0.0  # bytes that may pass now
        self._counted = 0.0  # when that was counted, monotonic
        self._tear = False
        self._torn = threading.Event()

    def __enter__(self) -> Self:
        self._near, self._far = socket.socketpair()
        self._listener = self._bound()
        self._listener.listen()
        self._listens = True
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end)
        self._thread.join(_ORDER_S)
        self._near.close()
        assert not self._thread.is_alive(), "the proxy's thread does not end"

    # --- what can be asked and ordered ---

    @property
    def connections(self) -> int:
        """How many connections there are from end to end."""
        return sum(not pair.forsaken for pair in list(self._pairs))

    def cut(self) -> None:
        """Close all connections, both sides, in an orderly way (FIN)."""
        self._do(self._drop)

    def reset(self, *, mid_packet: bool = False, within_s: float = 2.0) -> bool:
        """Reset all connections, both sides (RST).

        Args:
            mid_packet: wait for the next bytes that pass, and let only half of them through before.
            within_s: how long to wait for those; then the reset comes without.

        Returns:
            Whether it was in the middle of something.
        """
        torn = False
        if mid_packet:
            self._torn.clear()
            self._do(lambda: setattr(self, "_tear", True))
            torn = self._torn.wait(within_s)
        self._do(lambda: self._drop(rst=True))
        return torn

    def freeze(self) -> None:
        """Pass nothing on, close nothing; new connections wait, too."""
        self._do(lambda: setattr(self, "_frozen", True))

    def thaw(self) -> None:
        """Go on after `freeze`; nothing of what was sent meanwhile is lost."""
        self._do(lambda: setattr(self, "_frozen", False))

    def delay(self, seconds: float) -> None:
        """Pass everything on so much later than it came, both ways; 0 = at once."""
        self._do(lambda: setattr(self, "_delay_s", seconds))

    def throttle(self, bytes_per_s: float) -> None:
        """Pass on so many bytes a second, all connections and directions together; 0 = no limit."""

        def apply() -> None:
            self._rate, self._allowed, self._counted = bytes_per_s, 0.0, time.monotonic()

        self._do(apply)

    def half_open(self) -> None:
        """Close the server's sides. The clients are not told: what they send vanishes, and nothing comes back."""

        def apply() -> None:
            for pair in self._pairs:
                pair.forsaken = True
                pair.server.close()

        self._do(apply)

    def refuse(self) -> None:
        """Have new connections refused; those that are there stay."""

        def apply() -> None:
            if self._listens:
                self._listens = False
                self._listener.close()
                # Bound without listening: the kernel refuses, and nobody else gets the port.
                self._listener = self._bound()

        self._do(apply)

    def accept(self) -> None:
        """Take new connections again, after `refuse`."""

        def apply() -> None:
            if not self._listens:
                self._listens = True
                self._listener.listen()

        self._do(apply)

    def restore(self) -> None:
        """Take back everything that lasts; connections that are gone, or forsaken, stay so."""
        self.thaw()
        self.delay(0)
        self.throttle(0)
        self.accept()

    def _do(self, order: Callable[[], None]) -> None:
        """Have the proxy's thread do something, and wait for it."""
        done = threading.Event()
        self._orders.append((order, done))
        self._near.send(b"!")
        if not done.wait(_ORDER_S):
            raise RuntimeError(
                f"the proxy's thread did not answer within {_ORDER_S} s: it is dead, or was never started"
            )

    # --- in the proxy's thread ---

    def _bound(self) -> socket.socket:
        """A socket on our port, which does not listen."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, self.port))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        return listener

    def _end(self) -> None:
        self._open = False
        self._drop()
        self._listener.close()

    def _drop(self, *, rst: bool = False) -> None:
        self._tear = False
        for pair in self._pairs:
            pair.close(rst=rst)
        self._pairs.clear()

    def _run(self) -> None:
        try:
            while self._open:
                self._turn()
        finally:
            self._far.close()

    def _turn(self) -> None:
        """Wait until something can be done, and do it."""
        now = time.monotonic()
        if self._rate:
            # At most a tenth of a second's worth is saved up, and always room for one byte.
            most = max(1.0, self._rate / 10)
            self._allowed = min(most, self._allowed + (now - self._counted) * self._rate)
            self._counted = now
        wanted, pause = self._wanted(now)
        poll = select.poll()
        for number, events in wanted.items():
            poll.register(number, events)
        ready = dict(poll.poll(None if pause is None else max(1, round(pause * 1000))))
        if self._far.fileno() in ready:
            self._far.recv(4096)
            while self._orders:
                order, done = self._orders.popleft()
                order()
                done.set()
            return  # the sockets may be others now
        for pair in list(self._pairs):
            if pair not in self._pairs:  # a reset in the middle of another one's packet took it along
                continue
            try:
                self._serve(pair, ready)
            except OSError:
                self._lose(pair, rst=True)
        if self._listens and self._listener.fileno() in ready:
            self._take()

    def _wanted(self, now: float) -> tuple[dict[int, int], float | None]:
        """What to wait for: events by file descriptor, and the most seconds (None = for ever)."""
        wanted = {self._far.fileno(): select.POLLIN}
        pauses: list[float] = []

        def want(one: socket.socket, event: int) -> None:
            wanted[one.fileno()] = wanted.get(one.fileno(), 0) | event

        if self._frozen:
            return wanted, None
        if self._listens:
            want(self._listener, select.POLLIN)
        for pair in self._pairs:
            if pair.forsaken:
                want(pair.client, select.POLLIN)
                continue
            for way in pair.ways:
                if way.reads:
                    want(way.source, select.POLLIN)
                wait = self._wait(way, now)
                if wait is None:
                    continue
                if wait > 0:
                    pauses.append(wait)
                else:
                    want(way.sink, select.POLLOUT)
        return wanted, min(pauses, default=None)

    def _wait(self, way: _Way, now: float) -> float | None:
        """Seconds until something may be passed on; None where nothing waits."""
        if not way.waiting:
            return None
        starved = (1 - self._allowed) / self._rate if self._rate and self._allowed < 1 else 0.0
        return max(way.waiting[0][0] - now, starved)

    def _take(self) -> None:
        """Accept a client, and connect to the server for it; where that refuses, the client is reset."""
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            server = socket.socket()
            pair = _Pair(client, server, (_Way(client, server), _Way(server, client)))
            try:
                server.settimeout(1)
                server.connect((HOST, self._upstream))
            except OSError:
                pair.close(rst=True)
                return
            for one in (client, server):
                one.setblocking(False)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.append(pair)

    def _serve(self, pair: _Pair, ready: dict[int, int]) -> None:
        """Read and write what can be.

        Raises:
            OSError: one side is broken.
        """
        if pair.forsaken:
            if pair.client.fileno() in ready and not pair.client.recv(_READ):
                self._lose(pair)
            return
        now = time.monotonic()
        for way in pair.ways:
            if way.reads and ready.get(way.source.fileno(), 0) & ~select.POLLOUT:
                data = way.source.recv(_READ)
                way.ended = not data
                if data:
                    way.waiting.append((now + self._delay_s, data))
                    way.size += len(data)
            if ready.get(way.sink.fileno(), 0) & ~select.POLLIN and self._wait(way, now) == 0:
                self._write(way)
                if pair not in self._pairs:
                    return
        if any(way.ended and not way.waiting for way in pair.ways):
            self._lose(pair)

    def _write(self, way: _Way) -> None:
        """Pass the next bytes on: all, as many as the rate allows, or half of them before the reset."""
        due, data = way.waiting[0]
        most = len(data)
        if self._rate:
            most = min(most, int(self._allowed))
        if self._tear and len(data) > 1:
            most = min(most, len(data) // 2)
        sent = way.sink.send(data[:most])
        self._allowed -= sent
        way.size -= sent
        if sent == len(data):
            way.waiting.popleft()
        else:
            way.waiting[0] = (due, data[sent:])
        if self._tear and len(data) > 1:
            self._drop(rst=True)
            self._torn.set()

    def _lose(self, pair: _Pair, *, rst: bool = False) -> None:
        pair.close(rst=rst)
        self._pairs.remove(pair)
