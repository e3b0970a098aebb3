"""The child's end of the socket to the daemon."""

from __future__ import annotations

import select
import socket

from edged.engine.protocol import Decoder, Order, Report, encode

#: What is read at once. Bytes.
_READ = 1 << 16


class Channel:
    """Takes orders in and hands reports over."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = Decoder()

    def send(self, report: Report) -> None:
        """Hand a report over; waits while the daemon does not read."""
        self._socket.sendall(encode(report))

    def wait(self, event: int) -> None:
        """Wait until an order comes, or until there is something to read at another file descriptor."""
        select.select([self._socket.fileno(), event], [], [])

    def orders(self, *, wait: bool) -> list[Order] | None:
        """The orders that have come; None when the daemon is gone. With `wait`, at least one."""
        orders: list[Order] = []
        while True:
            try:
                data = self._socket.recv(_READ, 0 if wait and not orders else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return orders
            if not data:
                return None
            orders += [m for m in self._decoder.feed(data) if isinstance(m, Order)]
