"""A client's way to the broker: one connection at a time, opened when it is needed, and the node behind it."""

from __future__ import annotations

import threading
import time

from edged.client.commands import Shut
from edged.client.connection import Connection
from edged.client.errors import NotConnected
from edged.client.presence import choose, decide_after
from edged.client.settings import Settings, random_name

#: No wait is shorter, seconds, lest rounding make it a busy one.
_TICK_S = 0.001


class Link:
    """What `Client` and `AsyncClient` have in common: never waits, and may be used by several threads.

    Attributes:
        settings: as the client was made.
        client: the CLIENT level of all its topics.
    """

    def __init__(self, settings: Settings) -> None:
        """Nothing is opened yet."""
        self._connection: Connection | None = None
        self.settings = settings
        self.client = settings.client or random_name()
        self._node = settings.node
        self._lock = threading.Lock()
        self._closed = False

    def __del__(self) -> None:
        # The connection's thread knows nothing of the client, so a forgotten one would stay connected for ever.
        if self._connection is not None:
            self._connection.submit(Shut())

    def connection(self) -> Connection:
        """The connection, a new one where there is none or the last one is over. It may not be ready yet.

        Raises:
            NotConnected: the client was closed.
        """
        with self._lock:
            if self._closed:
                raise NotConnected(self.settings.broker, "the client was closed")
            last = self._connection
            if last is not None and last.lost is None and not _hangs(last):
                return last
            if last is not None:
                last.submit(Shut())
            self._connection = Connection(self.settings, self.client)
            self._connection.open()
            return self._connection

    def node(self, connection: Connection) -> str | None:
        """The node to talk to; None while it is too early to say: look again when the connection wakes its watchers.

        Raises:
            NotConnected: the connection failed.
            NodeUndecided: there is not exactly one node to choose.
        """
        if connection.lost is not None:
            raise connection.error()
        if connection.ready_at is None:
            if _hangs(connection):
                raise NotConnected(self.settings.broker, "no connection within connect_timeout")
            return None
        if self._node is None:
            decide_at = connection.ready_at + decide_after(connection.cards, self.settings.discovery_timeout)
            if time.monotonic() < decide_at:
                return None
            self._node = choose(connection.cards, self.settings.topic_root)
        return self._node

    def patience(self, connection: Connection) -> float:
        """How long to wait for a wake-up before asking for `node` again, seconds."""
        until = connection.give_up_at
        if connection.ready_at is not None:
            until = connection.ready_at + decide_after(connection.cards, self.settings.discovery_timeout)
        return max(_TICK_S, until - time.monotonic())

    def close(self) -> Connection | None:
        """Ask the connection to end, running requests to be cancelled; returns it, to be waited for."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.submit(Shut())
            return self._connection


def _hangs(connection: Connection) -> bool:
    return connection.ready_at is None and time.monotonic() >= connection.give_up_at
