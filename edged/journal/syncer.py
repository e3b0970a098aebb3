"""Makes what was written survive a power cut, in a thread of its own: the writer never waits for the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edged.core.events import Synced


class Syncer:
    """One fdatasync of the write-ahead log for all that was written before it, however many wait.

    This is what SQLite itself does at a COMMIT with `synchronous=FULL`: a transaction is durable when its frames in the
    log are. Nothing may be done like that with the database file: closing any descriptor of it would drop SQLite's
    locks.

    Args:
        log: the `-wal` file; it exists as long as a connection is open.
        post: takes the answers; is called in the syncer's thread.
    """

    def __init__(self, log: Path, post: Callable[[Synced], None]) -> None:
        self._log = log
        self._post = post
        self._wanted: int | None = None
        #: Why a sync failed. What was to be synced may be lost even if the next one succeeds (the kernel takes it for
        #: written), so all fail until the log is begun anew, and whoever did that sets this to None.
        self.failed: str | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._descriptor = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="edged-journal-sync", daemon=True)
        self._thread.start()

    def want(self, number: int) -> None:
        """Make all that was written so far durable, and say so with this number or a higher one."""
        with self._changed:
            self._wanted = number
            self._changed.notify()

    def doubt(self, why: str) -> None:
        """The disk has failed to keep the log when somebody else asked it to; may be called in any thread."""
        self.failed = why

    def close(self) -> None:
        """Answer what is asked, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        os.close(self._descriptor)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None or self._stopping)
                number, self._wanted = self._wanted, None
            if number is None:
                return
            self._post(Synced(number, self._sync()))

    def _sync(self) -> str | None:
        if self.failed is None:
            try:
                self._follow()
                os.fdatasync(self._descriptor)
            except OSError as error:
                self.failed = (
                    f"the journal's log {self._log} cannot be kept by the disk ({error.strerror}); check the disk"
                )
        return self.failed

    def _follow(self) -> None:
        """The file of that name may be another one now."""
        here, there = os.fstat(self._descriptor), os.stat(self._log)  # noqa: PTH116 - beside fstat
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            new = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = new


def sync_directory(directory: Path) -> None:
    """Make the names of new files survive a power cut.

    Raises:
        OSError: that is not certain.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
