"""How much of what was freed the C library keeps for the next time; where that is not glibc, it is left alone."""

from __future__ import annotations

import ctypes

#: The parameters' numbers in mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LIBC = ctypes.CDLL(None)


def keep_less_than(piece: int) -> None:
    """From now on give a piece of memory of so many bytes or more back to the kernel as soon as it is freed.

    glibc begins with 128 KiB, and makes that more by itself whenever a larger piece is freed, up to 32 MiB; it keeps up
    to twice as much at the end of each of its heaps (mallopt(3)). Smaller pieces are kept as before: what is needed for
    every token should not be asked of the kernel every time.
    """
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_MMAP_THRESHOLD, piece)
        _LIBC.mallopt(_M_TRIM_THRESHOLD, 2 * piece)


def trim() -> None:
    """Give back whatever is free; takes less than a millisecond."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
