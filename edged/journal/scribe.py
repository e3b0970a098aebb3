"""Writes rows: one transaction each time, without waiting for the disk."""

from __future__ import annotations

import logging
import sqlite3
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edged.core.records import Delivered, Ended, Generated, NewRequest, Row, Said, Standing, Withdrawn
from edged.journal.schema import get_meta, set_meta

_log = logging.getLogger(__name__)

_REQUEST = f"INSERT OR REPLACE INTO requests VALUES ({', '.join('?' * 16)})"  # noqa: S608 - question marks only
_NEW_STANDING = "INSERT OR REPLACE INTO standings (uid, gen, first_row) VALUES (?, ?, ?)"
_STANDING = "UPDATE standings SET gen = ?, begun_with = ?, fruitless = ?, suspected_at = ?, resumed = ? WHERE uid = ?"
_GEN = "UPDATE standings SET gen = ? WHERE uid = ?"
_ENDED = "UPDATE standings SET ended = ?, last_row = ?, messages = ?, confirmed = ? WHERE uid = ?"
_DELIVERED = "UPDATE standings SET delivered = 1 WHERE uid = ?"
_MESSAGE = "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(slots=True)
class Live:
    """What is known of a request that has not ended.

    Attributes:
        gen: its generation.
        first_row: its messages have this number or higher ones.
        last_row: and at most this one.
        messages: how many it said in this generation, without a gap.
        confirmed: so many of them the broker has.
    """

    gen: int
    first_row: int
    last_row: int
    messages: int = 0
    confirmed: int = 0


class Scribe:
    """The only one who writes. A call of `write` is one transaction.

    Args:
        db: a connection that is not in a transaction; nobody else writes.
        live: the requests that have not ended, by uid.
        torn: those of them of which something may be lost. Once each has gone on to its next generation, or has ended,
            the journal is as good as any again.
    """

    def __init__(self, db: sqlite3.Connection, live: dict[int, Live], torn: frozenset[int] = frozenset()) -> None:
        self._db = db
        #: Requests of which something may be lost, and that have not gone on to their next generation.
        self.torn = torn
        self._gens = {uid: live[uid].gen for uid in torn}
        self._next_row = next_row(db)
        #: The requests that have not ended, by uid.
        self.live = live

    def write(self, rows: Sequence[Row]) -> None:
        """Write all rows, or none of them.

        Raises:
            sqlite3.Error: none was written.
        """
        batch = _Batch(self._db, self.live, self._next_row)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            torn = self.torn
            if rows:
                batch.take(rows)
                if torn:
                    torn = self._still_torn(batch.changed)
            else:
                set_meta(self._db, "probe", int(get_meta(self._db, "probe") or 0) + 1)
            self._db.execute("COMMIT")
        except BaseException:
            self.roll_back()
            raise
        self.torn = torn
        self._next_row = batch.next_row
        for uid, one in batch.changed.items():
            if one is None:
                self.live.pop(uid, None)
            else:
                self.live[uid] = one

    def _still_torn(self, changed: dict[int, Live | None]) -> frozenset[int]:
        torn = frozenset(
            uid
            for uid in self.torn
            if uid not in changed or ((one := changed[uid]) is not None and one.gen <= self._gens[uid])
        )
        if not torn:
            set_meta(self._db, "torn", 0)
        return torn

    def forget(self, uids: Iterable[int]) -> None:
        """Delete requests with all that they said.

        Raises:
            sqlite3.Error: none was deleted.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for uid in uids:
                delete(self._db, uid)
            self._db.execute("COMMIT")
        except BaseException:
            self.roll_back()
            raise

    def roll_back(self) -> None:
        """End a transaction that failed; SQLite may have done so already."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")


class _Batch:
    """The rows of one transaction, and what they make of the requests that have not ended (None = gone)."""

    def __init__(self, db: sqlite3.Connection, live: dict[int, Live], first_row: int) -> None:
        self._db = db
        self._live = live
        self._messages: list[tuple[object, ...]] = []
        self.next_row = first_row
        self.changed: dict[int, Live | None] = {}

    def take(self, rows: Iterable[Row]) -> None:
        """Write them in order."""
        for row in rows:
            if isinstance(row, Said):
                self._say(row)
            elif isinstance(row, Generated):
                if (live := self._of(row)) is not None:
                    self._append(live, row.uid, row.gen, None, None, row.text, row.tokens, 0)
            else:
                self._flush()
                self._note(row)
        self._flush()

    def _note(self, row: NewRequest | Standing | Ended | Delivered | Withdrawn) -> None:
        match row:
            case NewRequest():
                self._db.execute(_REQUEST, request_values(row))
                self._db.execute(_NEW_STANDING, (row.uid, row.gen, self.next_row))
                self.changed[row.uid] = Live(row.gen, self.next_row, self.next_row - 1)
            case Standing():
                if (live := self._get(row.uid)) is not None and row.gen >= live.gen:
                    values = (row.gen, row.begun_with, row.fruitless, row.suspected_at, row.resumed, row.uid)
                    self._db.execute(_STANDING, values)
                    if row.gen > live.gen:
                        live.gen, live.messages, live.confirmed = row.gen, 0, 0
            case Ended():
                if (live := self._get(row.uid)) is not None:
                    self._db.execute(_ENDED, (row.wall, live.last_row, live.messages, live.confirmed, row.uid))
                    self.changed[row.uid] = None
            case Delivered():
                self._db.execute(_DELIVERED, (row.uid,))
            case Withdrawn():
                delete(self._db, row.uid)
                self.changed[row.uid] = None

    def _say(self, row: Said) -> None:
        live = self._of(row)
        if live is None:
            return
        self._append(live, row.uid, row.gen, row.seq, row.payload, row.text, row.tokens, row.confirmed)
        if row.seq == live.messages:
            live.messages += 1
        live.confirmed = max(live.confirmed, row.confirmed)

    def _append(
        self,
        live: Live,
        uid: int,
        gen: int,
        seq: int | None,
        payload: bytes | None,
        text: str,
        tokens: tuple[int, ...],
        confirmed: int,
    ) -> None:
        live.last_row = self.next_row
        self._messages.append(
            (
                self.next_row,
                uid,
                gen,
                seq,
                payload,
                text.encode(errors="surrogatepass"),
                array("I", tokens).tobytes(),
                confirmed,
            )
        )
        self.next_row += 1

    def _flush(self) -> None:
        if self._messages:
            self._db.executemany(_MESSAGE, self._messages)
            self._messages.clear()

    def _of(self, row: Said | Generated) -> Live | None:
        """The request that something was said for, in that generation at least; None where there is no such."""
        live = self._get(row.uid)
        if live is None or row.gen < live.gen:
            _log.warning("the journal passes over a message of request %d, gen %d, which is over", row.uid, row.gen)
            return None
        if row.gen > live.gen:
            self._db.execute(_GEN, (row.gen, row.uid))
            live.gen, live.messages, live.confirmed = row.gen, 0, 0
        return live

    def _get(self, uid: int) -> Live | None:
        """A request that has not ended, to be changed: what is known of it changes with the COMMIT only."""
        if uid in self.changed:
            return self.changed[uid]
        live = self._live.get(uid)
        if live is not None:
            live = self.changed[uid] = replace(live)
        return live


def delete(db: sqlite3.Connection, uid: int) -> None:
    """Delete a request with all that it said, within a transaction."""
    where = db.execute("SELECT first_row, last_row FROM standings WHERE uid = ?", (uid,)).fetchone()
    if where is not None:
        last = where[1] if where[1] is not None else (1 << 63) - 1
        db.execute("DELETE FROM messages WHERE row BETWEEN ? AND ? AND uid = ?", (where[0], last, uid))
    db.execute("DELETE FROM standings WHERE uid = ?", (uid,))
    db.execute("DELETE FROM requests WHERE uid = ?", (uid,))
    if uid > int(get_meta(db, "last_uid") or 0):  # it may have been the highest, and that is never given again
        set_meta(db, "last_uid", uid)


def next_row(db: sqlite3.Connection) -> int:
    """The number that the next message gets: above all that stand in the journal, and above where any may begin."""
    last = db.execute("SELECT max(row) FROM messages").fetchone()[0] or 0
    first, ended = db.execute("SELECT max(first_row), max(last_row) FROM standings").fetchone()
    return int(max(last + 1, first or 1, (ended or 0) + 1))


def request_values(row: NewRequest) -> tuple[object, ...]:
    """A request as the columns of its table."""
    return (
        row.uid,
        row.key.client,
        row.key.id,
        row.digest,
        row.came_in,
        row.payload,
        row.response_topic,
        row.correlation,
        row.packet_id,
        row.seed,
        row.topic,
        row.arrived.mono,
        row.arrived.wall,
        row.deadline.mono,
        row.deadline.wall,
        row.gen,
    )
