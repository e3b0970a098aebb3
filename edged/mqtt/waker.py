"""How one thread ends another's wait for a socket."""

from __future__ import annotations

import contextlib
import socket
from typing import Self


class Waker:
    """Ends a `poll` in the thread that made this, from any other."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def fileno(self) -> int:
        """What to poll for reading."""
        return self._read.fileno()

    def wake(self) -> None:
        """End the other thread's `poll`, now or the next one."""
        # Full, and it wakes anyway; or closed, and there is nobody left to wake.
        with contextlib.suppress(OSError):
            self._write.send(b"\0")

    def drain(self) -> None:
        """Forget what has been woken for."""
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._read.close()
        self._write.close()
