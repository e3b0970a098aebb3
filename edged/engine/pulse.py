"""A page of memory that the daemon and an engine's child share: how a step goes, and a flag that stops it.

The daemon reads from it whether a step makes sense in time, without a message for each; and it can have the step
aborted that the child is in, which no message could, because the child reads its messages between steps.
"""

from __future__ import annotations

import ctypes
import mmap
import os


class _Page(ctypes.Structure):
    #: `abort` is a C string of no or one character: its length is what llama.cpp's abort callback returns.
    _fields_ = (
        ("abort", ctypes.c_uint8 * 8),
        ("turn", ctypes.c_uint64),  # odd while a step is computed
        ("expected_s", ctypes.c_double),  # what that step should take; 0 = nobody knows yet
        ("again", ctypes.c_uint64),  # 1 where the step before was aborted, and this one is not to be
    )


class Pulse:
    """One end of the page; it lives as long as anyone has it open.

    Args:
        fd: of the page, as inherited; None makes a new one.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("edged-pulse") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, mmap.PAGESIZE)
        self._memory = mmap.mmap(self.fd, mmap.PAGESIZE)
        self._page: _Page | None = _Page.from_buffer(self._memory)

    # --- the child's side ---

    @property
    def abort_flag(self) -> int:
        """Address of the flag, a C string of length 0 or 1."""
        return ctypes.addressof(self._open)

    def calm(self) -> None:
        """Take back the wish to abort. Before orders are read, for it comes with one."""
        self._open.abort[0] = 0

    @property
    def aborting(self) -> bool:
        """Whether the daemon wants the step aborted."""
        return bool(self._open.abort[0])

    def begin(self, expected_s: float | None, *, again: bool = False) -> None:
        """A step begins that should take so long, seconds; None = nobody knows. `again`: the one before was aborted."""
        page = self._open
        page.again = again
        page.expected_s = expected_s or 0.0
        page.turn += 1

    def end(self) -> None:
        """The step is computed."""
        self._open.turn += 1

    # --- the daemon's side ---

    @property
    def turn(self) -> int:
        """Rises with every begin and every end of a step: odd while one is computed."""
        return int(self._open.turn)

    @property
    def expected_s(self) -> float:
        """What the step should take that is being computed, seconds; 0 = nobody knows."""
        return float(self._open.expected_s)

    @property
    def again(self) -> bool:
        """Whether the step before was aborted: with one cancel after the other nobody would get on."""
        return bool(self._open.again)

    def abort(self) -> None:
        """Have the step aborted that is being computed, or the next one."""
        self._open.abort[0] = 1

    def close(self) -> None:
        """Give this end up; a second time does nothing."""
        if self._page is not None:
            self._page = None
            self._memory.close()
            os.close(self.fd)

    @property
    def _open(self) -> _Page:
        assert self._page is not None, "closed"  # noqa: S101 - a defect of ours
        return self._page
