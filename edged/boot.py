"""The number of this boot: it rises at every start, through clocks that jump and state directories that are wiped."""

from __future__ import annotations

import os
from pathlib import Path

_FILE = "boot"


def next_boot(directory: Path, wall: float) -> int:
    """Count this start, durably, and return its number.

    It is the Unix time, or one more than the last number where the clock stands behind that.

    Args:
        directory: where the number is kept; made if it is missing.
        wall: Unix seconds.

    Raises:
        OSError: the number cannot be kept; it would still be right while the clock does not go back.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file, new = directory / _FILE, directory / f"{_FILE}.new"
    try:
        last = int(file.read_text())
    except (FileNotFoundError, ValueError):  # the first start, or a file that a power cut left empty
        last = 0
    boot = max(last + 1, int(wall))
    with new.open("w") as out:
        out.write(f"{boot}\n")
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)
    return boot
