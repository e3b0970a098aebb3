"""What of a file is in this process's memory because it is mapped there."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_MAPS, _SMAPS = Path("/proc/self/maps"), Path("/proc/self/smaps")
#: madvise(2): these pages are not needed for now.
_DONTNEED = 4


def let_go(path: Path) -> None:
    """Let go of a mapped file's pages. Whatever is used again comes back by itself: they stay in the kernel's cache.

    Where /proc is missing, nothing is done.
    """
    try:
        lines = _MAPS.read_bytes().splitlines()
    except OSError:
        return
    name = os.fsencode(path.resolve())
    for line in lines:
        # start-end permissions offset device inode path (proc_pid_maps(5)); a private page would lose what was written
        span, permissions, *rest = line.split(maxsplit=5)
        if rest[-1] == name and b"w" not in permissions:
            start, end = (int(address, 16) for address in span.split(b"-"))
            _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def share(path: Path) -> float:
    """Which part of what is mapped of a file is in memory, 0 to 1; 1 where nothing is mapped, or /proc is missing."""
    try:
        lines = _SMAPS.read_bytes().splitlines()
    except OSError:
        return 1.0
    name, counts = os.fsencode(path.resolve()), False
    sizes = {b"Size:": 0, b"Rss:": 0}
    for line in lines:
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(b":"):  # the line of a mapping, as in maps; what follows is about it
            counts = rest[-1] == name
        elif counts and first in sizes:
            sizes[first] += int(rest[0])
    return sizes[b"Rss:"] / sizes[b"Size:"] if sizes[b"Size:"] else 1.0
