"""Moves what is in the write-ahead log into the database, without ever making the writer wait for the disk.

A thread copies the log and has the disk keep it (`wal_checkpoint(PASSIVE)`, which takes no lock that writers want). A
log that is copied to its end may be written from its beginning again. SQLite would sync its new header then, in the
writer; with `synchronous=OFF` it does not, and a power cut could leave the old header before new frames and bring old
pages back. So it never comes to that: a reader (the anchor) keeps SQLite from starting the log again, and the writer
empties the file itself when it finds that nothing was added since it was copied. What follows goes to new blocks then,
and the old ones are gone or complete.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path

_log = logging.getLogger(__name__)

#: The log is copied when it has grown by so much, bytes.
STEP_BYTES = 1 << 20
#: A log of that size is emptied even if the writer has to wait for the disk once, bytes. It takes a writer that never
#: rests for as long as two syncs take.
MOST_BYTES = 16 * STEP_BYTES
#: A log that has not grown for so long is copied at once, seconds.
_QUIET_S = 0.25


class _State(Enum):
    IDLE = auto()  #: the log is short
    COPYING = auto()  #: the thread has the anchor
    COPIED = auto()  #: up to `_copied`; the writer may take the anchor up
    BEHIND = auto()  #: copied, but the writer has added to it; the thread may go on when it sees fit


class Checkpointer:
    """Keeps the log short.

    Args:
        db: the file of the database.
        log: the write-ahead log.
        writer: the writer's connection; used in its thread only.
        doubt: told why the log may not be on the disk, even if a later sync succeeds; called in the thread.
        step_bytes, most_bytes: see `STEP_BYTES`, `MOST_BYTES`.

    Raises:
        sqlite3.Error: the database cannot be opened.
    """

    def __init__(
        self,
        db: Path,
        log: Path,
        writer: sqlite3.Connection,
        *,
        doubt: Callable[[str], None],
        step_bytes: int = STEP_BYTES,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._log = log
        self._writer = writer
        self._doubt = doubt
        self._step_bytes = step_bytes
        self._most_bytes = most_bytes
        self._state = _State.IDLE
        self._copied = self._tried = self._hopeless_below = 0  # bytes of the log
        self._stopping = False
        self._changed = threading.Condition()
        self._anchor = sqlite3.connect(db, isolation_level=None, check_same_thread=False)
        self._db = sqlite3.connect(db, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA synchronous = FULL")
        #: How often the log was copied, emptied, and emptied while the writer waited for the disk.
        self.copies = self.emptied = self.forced = 0
        self._thread = threading.Thread(target=self._run, name="edged-journal-upkeep", daemon=True)
        self._thread.start()

    # --- in the writer's thread ---

    def before_write(self) -> None:
        """Empty the log if that costs nothing, or have it copied."""
        size = self._size()
        if self._state is _State.IDLE and size < self._step_bytes:
            return
        with self._changed:
            if self._state is _State.IDLE:
                self._state = _State.COPYING
                self._changed.notify()
            elif self._state is _State.COPIED and size == self._copied:
                self._empty()
            elif self._state is not _State.COPYING and size > max(self._most_bytes, self._hopeless_below):
                self.forced += 1
                self._force()
            elif self._state is _State.COPIED:
                self._state = _State.BEHIND
                self._changed.notify()

    def secure(self) -> bool:
        """Copy all of the log and empty it, waiting for the disk. After that nothing depends on what the log was.

        Returns:
            Whether it is empty now.

        Raises:
            sqlite3.Error: that failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._state is not _State.COPYING)
            before = self.emptied
            self._force()
            return self.emptied > before

    def _force(self) -> None:
        self._writer.execute("PRAGMA synchronous = FULL")
        self._empty()

    def _empty(self) -> None:
        """With `synchronous=OFF` only where all of it is copied: then nothing is left to be synced."""
        self._lift()
        self._state = _State.IDLE
        waits = self._writer.execute("PRAGMA busy_timeout").fetchone()[0]
        self._writer.execute("PRAGMA busy_timeout = 0")
        busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._writer.execute(f"PRAGMA busy_timeout = {waits}")
        if not busy:
            self.emptied += 1
            self._hopeless_below = 0
        else:  # somebody from outside reads
            self._state = _State.BEHIND
            self._hopeless_below = self._size() + self._step_bytes
            self._changed.notify()
        # SQLite may begin the log again as it likes while there is no anchor, and must sync the header then.
        self._writer.execute(f"PRAGMA synchronous = {'NORMAL' if busy else 'OFF'}")

    def close(self) -> None:
        """End; what is left in the log is the writer's to copy."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        self._lift()
        self._anchor.close()
        self._db.close()

    # --- in the thread ---

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._state in {_State.COPYING, _State.BEHIND})
                if not self._stopping and self._state is _State.BEHIND:
                    self._await_rest()
                if self._stopping:
                    return
                if self._state is _State.IDLE:
                    continue  # emptied by force
                self._state = _State.COPYING
            copied = self._copy()
            with self._changed:
                self._copied = copied
                self._state = _State.COPIED
                self._changed.notify_all()

    def _await_rest(self) -> None:
        """Wait until the writer rests, or the log has grown by another step."""
        size = 0
        while (now := self._size()) != size and now < self._tried + self._step_bytes:
            size = now
            if self._changed.wait_for(lambda: self._stopping or self._state is not _State.BEHIND, _QUIET_S):
                return

    def _copy(self) -> int:
        """Copy the log; returns how much of it is copied for good, bytes.

        The anchor is new each time: it holds the log as it is now. There are frames that are not copied, or else this
        would not run, so that the anchor is at the log and not at the database alone.
        """
        self._tried = self._size()
        try:
            self._lift()
            self._anchor.execute("BEGIN")
            self._anchor.execute("SELECT count(*) FROM meta").fetchone()
            self.copies += 1
            busy, frames, copied = self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            page: int = self._db.execute("PRAGMA page_size").fetchone()[0]
        except sqlite3.Error as error:
            why = f"the journal's log {self._log} cannot be copied into the database: {error}; check the disk"
            _log.warning("%s", why)
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_FSYNC:
                self._doubt(why)
            return 0
        return 0 if busy or copied < frames else 32 + copied * (24 + page)  # file format 4.1 and 4.2

    def _lift(self) -> None:
        with suppress(sqlite3.Error):
            if self._anchor.in_transaction:
                self._anchor.execute("ROLLBACK")

    def _size(self) -> int:
        try:
            return os.stat(self._log).st_size  # noqa: PTH116 - twice as fast, and it is called at every write
        except OSError:
            return 0
