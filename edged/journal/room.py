"""How much the journal may hold, and for how long."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from itertools import accumulate

from edged.journal.scribe import Scribe

_log = logging.getLogger(__name__)

#: Requests that are forgotten in one transaction, at most, and rows of the log of messages that are looked at for that.
_REQUESTS, _ROWS = 20, 4000
_OLDEST = """
    SELECT uid, ended, last_row - first_row FROM standings WHERE ended IS NOT NULL ORDER BY ended, uid LIMIT ?
"""
_OLDEST_DELIVERED = "SELECT uid FROM standings WHERE ended IS NOT NULL AND delivered ORDER BY ended, uid LIMIT ?"
#: The least that the tables fit into, pages.
_LEAST = 64


class Room:
    """Forgets requests: when their time is over, or before that, when there is no room.

    Args:
        db: the connection that writes.
        scribe: deletes them.
        keep_s: they are remembered for so long after their end.
        max_bytes: bound on the size of the database.

    Raises:
        sqlite3.Error: the bound could not be set.
    """

    def __init__(self, db: sqlite3.Connection, scribe: Scribe, *, keep_s: float, max_bytes: int) -> None:
        self._db = db
        self._scribe = scribe
        self._keep_s = keep_s
        pages = max(_LEAST, max_bytes // self._pragma("page_size"))
        if self._pragma("page_count") > pages:
            self._shrink(pages)
        self._db.execute(f"PRAGMA max_page_count = {pages}")  # not below what it has: then it only stops growing

    def _shrink(self, pages: int) -> None:
        """The bound was higher before."""
        while self._pragma("page_count") - self._pragma("freelist_count") > pages and self.make():
            pass
        with suppress(sqlite3.Error):
            self._db.execute("VACUUM")

    def make(self) -> bool:
        """Forget the oldest requests before their time; False where all that there are may still be needed.

        Raises:
            sqlite3.Error: none was forgotten.
        """
        uids = [row[0] for row in self._db.execute(_OLDEST_DELIVERED, (_REQUESTS,))]
        if uids:
            self._scribe.forget(uids)
            _log.info("the journal is full: the oldest %d answered requests in it are forgotten early", len(uids))
        return bool(uids)

    def tidy(self, wall: float) -> float | None:
        """Forget a few of the requests whose time is over.

        Args:
            wall: Unix seconds.

        Returns:
            When there is more to forget, Unix seconds, which may be now; None where nothing is remembered.

        Raises:
            sqlite3.Error: none was forgotten.
        """
        rows = self._db.execute(_OLDEST, (_REQUESTS + 1,)).fetchall()
        spans = accumulate(row[2] for row in rows)
        portion = max(1, min(_REQUESTS, sum(span <= _ROWS for span in spans)))
        over = [uid for uid, ended, _ in rows[:portion] if ended + self._keep_s <= wall]
        if over:
            self._scribe.forget(over)
        left = rows[len(over) :]
        return left[0][1] + self._keep_s if left else None

    def _pragma(self, name: str) -> int:
        value: int = self._db.execute(f"PRAGMA {name}").fetchone()[0]
        return value

    def size(self) -> int:
        """Bytes of the pages that hold something.

        Raises:
            sqlite3.Error: that cannot be found out.
        """
        return (self._pragma("page_count") - self._pragma("freelist_count")) * self._pragma("page_size")
