"""Lines for systemd's journal begin with their priority, which it takes off again (sd-daemon(3))."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TextIO

_PRIORITIES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}


def prefix(level: str, out: TextIO) -> str:
    """What a line of that level begins with; nothing where somebody else reads it.

    `$JOURNAL_STREAM` has the device and inode of what the journal reads (systemd.exec(5)).
    """
    with suppress(OSError, ValueError):
        status = os.fstat(out.fileno())
        if os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
            return _PRIORITIES.get(level, "")
    return ""
