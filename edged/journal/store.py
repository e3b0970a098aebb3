"""The journal: what was accepted and said outlives the process, and at the end of a `sync` the machine's power."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from edged.core.events import Synced
from edged.core.records import Key, NewRequest, Past, Restored, Row, Said
from edged.journal.checkpointer import Checkpointer
from edged.journal.errors import JournalError, explain, primary
from edged.journal.lock import Lock
from edged.journal.opening import Opened, open_file, open_memory
from edged.journal.reader import Reader
from edged.journal.room import Room
from edged.journal.schema import set_meta
from edged.journal.scribe import Scribe
from edged.journal.syncer import Syncer

_log = logging.getLogger(__name__)

#: After `tidy` failed, it is tried again so much later, seconds.
_PAUSE_S = 60.0


class Journal:
    """Keeps rows, and answers what the core asks of them. All methods belong to one thread.

    Made with `open`. Implements `edged.core.records.History`.
    """

    def __init__(
        self,
        path: Path | None,
        opened: Opened,
        lock: Lock | None,
        *,
        keep_s: float,
        max_bytes: int,
        post: Callable[[Synced], None],
    ) -> None:
        self._path = path
        self._lock = lock
        self._max_bytes = max_bytes
        self._post = post
        self._db = opened.db
        #: Where the file is that was there and could not be used; None where there was none such.
        self.set_aside = opened.set_aside
        #: How many requests could be read out of that.
        self.salvaged = opened.salvaged
        self._restored = opened.restored
        self._scribe = Scribe(self._db, opened.live, opened.torn)
        self._room = Room(self._db, self._scribe, keep_s=keep_s, max_bytes=max_bytes)
        self._reader = Reader(self._db, opened.live)
        self._log_file = None if path is None else path.with_name(f"{path.name}-wal")
        self._syncer: Syncer | None = None
        self._checkpointer: Checkpointer | None = None
        if path is not None and self._log_file is not None:
            self._syncer = Syncer(self._log_file, post)
            try:
                self._checkpointer = Checkpointer(path, self._log_file, self._db, doubt=self._syncer.doubt)
            except BaseException:
                self._syncer.close()
                raise

    @classmethod
    def open(
        cls,
        path: Path | None,
        *,
        keep_s: float,
        max_bytes: int,
        boot_id: str,
        wall: float,
        post: Callable[[Synced], None],
    ) -> Journal:
        """Open a journal, or make one; a file that cannot be used is set aside.

        Args:
            path: of the file; its directory is made if it is missing. None = in memory.
            keep_s: requests are remembered for so long after their end.
            max_bytes: bound on the size of the database.
            boot_id: of this boot of the machine.
            wall: Unix seconds.
            post: takes the answers to `sync`; is called in another thread.

        Raises:
            JournalBusy: another daemon has it open.
            JournalError: it cannot be opened, and no new one can be made.
        """
        if path is None:
            return cls(None, open_memory(), None, keep_s=keep_s, max_bytes=max_bytes, post=post)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(
                f"the journal's directory {path.parent} cannot be made: {error.strerror}; "
                "make it, or set journal.path to a place where this user may write"
            ) from None
        lock = Lock(path)
        try:
            opened = open_file(path, keep_s=keep_s, boot_id=boot_id, wall=wall)
            try:
                return cls(path, opened, lock, keep_s=keep_s, max_bytes=max_bytes, post=post)
            except BaseException:
                opened.db.close()
                raise
        except sqlite3.Error as error:
            lock.release()
            raise JournalError(explain(error, path, max_bytes=max_bytes)) from None
        except BaseException:
            lock.release()
            raise

    def restored(self) -> Restored:
        """What an earlier daemon left behind, as of `open`."""
        return self._restored

    # --- writing ---

    def write(self, rows: Sequence[Row]) -> str | None:
        """Write all rows, or none of them, without waiting for the disk: they survive the end of the process.

        Args:
            rows: in order; none = find out whether writing works.

        Returns:
            Why none was written; None where all are.
        """
        try:
            if self._checkpointer is not None and self._syncer is not None:
                if not rows and self._syncer.failed and self._checkpointer.secure():
                    self._syncer.failed = None
                self._checkpointer.before_write()
            try:
                self._scribe.write(rows)
            except sqlite3.Error as error:
                if primary(error) != sqlite3.SQLITE_FULL or not self._room.make():
                    raise
                self._scribe.write(rows)
        except sqlite3.Error as error:
            needed = sum(len(row.payload) for row in rows if isinstance(row, NewRequest | Said))
            return explain(error, self._path, max_bytes=self._max_bytes, needed=needed)
        return None

    def sync(self, number: int) -> None:
        """Have all that was written so far made durable; `Synced` with this number or a higher one answers."""
        if self._syncer is None:
            self._post(Synced(number))
        else:
            self._syncer.want(number)

    def tidy(self, wall: float) -> float | None:
        """Forget a few of the requests whose time is over.

        Args:
            wall: Unix seconds.

        Returns:
            When there is more to forget, Unix seconds, which may be now; None where nothing is left to be forgotten.
        """
        try:
            return self._room.tidy(wall)
        except sqlite3.Error as error:
            _log.warning("%s", explain(error, self._path, max_bytes=self._max_bytes))
            return wall + _PAUSE_S

    # --- History ---

    def find(self, key: Key) -> Past | None:
        """A request that has ended and is still remembered."""
        try:
            return self._reader.find(key)
        except (sqlite3.Error, ValueError, TypeError) as error:
            self._unreadable(error)
            return None

    def redelivered(self, packet_id: int, digest: bytes) -> Key | None:
        """The last request that came with this packet identifier, if that had the same payload."""
        try:
            return self._reader.redelivered(packet_id, digest)
        except (sqlite3.Error, ValueError, TypeError) as error:
            self._unreadable(error)
            return None

    def messages(self, uid: int, gen: int, first: int, most: int) -> list[tuple[int, bytes]]:
        """Recorded messages from `seq` `first` on, at most so many: (seq, payload), ascending, without a gap."""
        try:
            return self._reader.messages(uid, gen, first, most)
        except (sqlite3.Error, ValueError, TypeError) as error:
            self._unreadable(error)
            return []

    def _unreadable(self, error: Exception) -> None:
        _log.error("the journal %s cannot be read: %s", self._path, error)

    def size(self) -> int:
        """Bytes in use: of the database, and of its log."""
        size = 0
        with suppress(sqlite3.Error):
            size = self._room.size()
        if self._log_file is not None:
            with suppress(OSError):
                size += self._log_file.stat().st_size
        return size

    # --- the end ---

    def close(self, *, clean: bool) -> None:
        """End it; may be called again.

        Args:
            clean: nothing is under way: make all durable, so that streams go on even after the power was off.
        """
        if self._syncer is not None:
            self._syncer.close()
            self._syncer = None
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None
        if self._lock is None:
            self._db.close()
            return
        try:
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if clean and not self._scribe.torn:  # after all that it vouches for
                set_meta(self._db, "clean", 1)
        except sqlite3.Error as error:
            _log.warning("%s", explain(error, self._path, max_bytes=self._max_bytes))
        with suppress(sqlite3.Error):
            self._db.close()
        self._lock.release()
        self._lock = None
