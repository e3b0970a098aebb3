"""What was freed is given back, and what is needed again and again is kept."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

MIB = 2**20
#: Frees 24 MiB once, so that glibc keeps such pieces from then on, and then 16; tells what of these is still resident.
CHILD = """
    import ctypes, sys
    from pathlib import Path
    from edged.heap import keep_less_than, trim

    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

    def use(size):
        piece = libc.malloc(size)
        ctypes.memset(piece, 1, size)
        libc.free(piece)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if int(sys.argv[1]):
        keep_less_than(int(sys.argv[1]))
    before = resident()
    use(24 * 2**20)
    use(int(sys.argv[2]))
    kept = resident() - before
    trim()
    print(kept, resident() - before)
"""


@pytest.mark.parametrize(
    ("limit", "size", "kept"), [(0, 16, True), (1, 16, False), (32, 16, True), (1, 0.5, True)], ids=str
)
def test_what_stays_resident_of_a_piece_that_was_freed(limit: int, size: float, *, kept: bool) -> None:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(limit * MIB), str(int(size * MIB))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    of_itself, at_most = (int(word) > size * MIB / 2 for word in done.stdout.split())
    assert (of_itself, at_most) == (kept, False)
