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
        self._woken = False

    def fileno(self) -> int:
        """What to poll for reading."""
        return self._read.fileno()

    def wake(self) -> None:
        """End the other thread's `poll`, now or the next one."""
        if self._woken:  # and it has not begun to look yet
            return
        self._woken = True
        with contextlib.suppress(OSError):  # closed, and there is nobody left to wake
            self._write.send(b"\0")

    def drain(self) -> None:
        """Forget what has been woken for; to be called before one looks what that was."""
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)
        # Last: who wakes until now is heard, for what was done before is looked at behind this; the other way round a
        # byte could be read with the mark left behind, and nobody could wake any more.
        self._woken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._read.close()
        self._write.close()
