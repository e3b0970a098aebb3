"""The tables of the journal, and how older ones become those."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

#: In the header of the file: it is one of ours ("edgd").
APPLICATION_ID = 0x65646764
#: Bytes of a page. A write costs at least the page that new messages go to, so small ones spare flash.
PAGE_SIZE = 1024

#: What leads from one version to the next, in order; the version is how many of them were done. Only ever add to it.
#:
#: What changes with a request (`standings`) is kept apart from what does not (`requests`), so that a long prompt is not
#: written again with every change. `messages` is a log: a row's number says when it was written, and the messages of
#: all streams that are written together land in the same page. It has no index for that reason: those of a request
#: stand between `first_row` and `last_row` of its standing. A row without `seq` is a piece of an answer that is not
#: streamed.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
        """
        CREATE TABLE requests (
            uid INTEGER PRIMARY KEY, client TEXT, id TEXT NOT NULL, digest BLOB NOT NULL, came_in TEXT NOT NULL,
            payload BLOB NOT NULL, response_topic TEXT, correlation BLOB, packet_id INTEGER, seed INTEGER NOT NULL,
            topic TEXT NOT NULL, arrived_mono REAL NOT NULL, arrived_wall REAL NOT NULL, deadline_mono REAL NOT NULL,
            deadline_wall REAL NOT NULL, gen INTEGER NOT NULL
        )
        """,
        "CREATE INDEX requests_by_name ON requests (id, client)",
        "CREATE INDEX requests_by_packet ON requests (packet_id) WHERE packet_id IS NOT NULL",
        """
        CREATE TABLE standings (
            uid INTEGER PRIMARY KEY, gen INTEGER NOT NULL, begun_with INTEGER, fruitless INTEGER NOT NULL DEFAULT 0,
            suspected_at INTEGER, resumed INTEGER NOT NULL DEFAULT 0, first_row INTEGER NOT NULL,
            last_row INTEGER, messages INTEGER, confirmed INTEGER, ended REAL, delivered INTEGER NOT NULL DEFAULT 0
        )
        """,
        "CREATE INDEX standings_by_end ON standings (ended) WHERE ended IS NOT NULL",
        """
        CREATE TABLE messages (
            row INTEGER PRIMARY KEY, uid INTEGER NOT NULL, gen INTEGER NOT NULL, seq INTEGER, payload BLOB,
            text BLOB NOT NULL, tokens BLOB NOT NULL, confirmed INTEGER NOT NULL
        )
        """,
    ),
)


class NewerError(Exception):
    """A journal was written by a later version of this program."""


def migrate(db: sqlite3.Connection, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> int:
    """Bring a journal up to date, all or nothing; a file without tables becomes one.

    Returns:
        How many steps were done.

    Raises:
        sqlite3.Error: it could not be written; nothing has changed.
        NewerError: its version is newer than ours.
    """
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise NewerError(f"its version is {version}, and this edged knows versions up to {len(migrations)}")
    if version == len(migrations):
        return 0
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in migrations[version:]:
            for statement in step:
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(migrations)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return len(migrations) - version


def get_meta(db: sqlite3.Connection, key: str) -> str | int | None:
    """A fact about the journal as a whole; None where there is none."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def set_meta(db: sqlite3.Connection, key: str, value: str | int) -> None:
    """Keep a fact about the journal as a whole."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
