"""One daemon for one journal."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from edged.journal.errors import JournalBusy, JournalError


class Lock:
    """Held from its making to `release`, or to the end of the process, however that ends.

    The file stays: whoever unlinks it while another waits for it would let two in.

    Args:
        journal: the file that is guarded, by a file beside it.

    Raises:
        JournalBusy: another one has it.
        JournalError: it cannot be made.
    """

    def __init__(self, journal: Path) -> None:
        file = journal.with_name(f"{journal.name}.lock")
        try:
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(
                f"the journal cannot be used: {file} cannot be opened for writing ({error.strerror}); "
                "check who owns the directory, or set journal.path to a place where this user may write"
            ) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if isinstance(error, BlockingIOError):
                raise JournalBusy(
                    f"another edged has the journal {journal} open; stop that one, or set journal.path to another file"
                ) from None
            raise JournalError(f"the journal {journal} cannot be locked: {error.strerror}; use a local disk") from None

    def release(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)
