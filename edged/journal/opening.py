"""Opens the file of a journal: what is ours is used, what is not, or is damaged, is set aside and never destroyed."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from edged.core.records import Restored, Standing
from edged.journal.errors import JournalError, JournalFull, explain, is_corruption, primary
from edged.journal.reader import restore
from edged.journal.salvage import Salvage, salvage
from edged.journal.schema import APPLICATION_ID, PAGE_SIZE, NewerError, get_meta, migrate, set_meta
from edged.journal.scribe import Live, Scribe
from edged.journal.syncer import sync_directory

_log = logging.getLogger(__name__)

#: How long a lock is waited for, seconds. Nobody of ours ever holds one; somebody may look into the file with a tool.
BUSY_S = 0.2
_BESIDE = ("", "-wal", "-shm")
_MAGIC = b"SQLite format 3\x00"


@dataclass(frozen=True, slots=True)
class Opened:
    """An open journal.

    Attributes:
        db: the connection that writes: nothing it does waits for the disk.
        restored: what was there.
        live: the requests that have not ended, by uid.
        torn: those of them of which something may be lost.
        set_aside: where the file is that was there before; None where that is in use.
        salvaged: requests that were read out of it.
    """

    db: sqlite3.Connection
    restored: Restored
    live: dict[int, Live]
    torn: frozenset[int] = frozenset()
    set_aside: Path | None = None
    salvaged: int = 0


class _Unusable(Exception):  # noqa: N818 - it never leaves this file
    """The file is no journal of ours, or not any more. The text says why."""

    def __init__(self, why: str, *, damaged: bool) -> None:
        super().__init__(why)
        self.damaged = damaged


def connect(file: Path | str) -> sqlite3.Connection:
    """A connection without transactions of its own making, for any one thread at a time.

    Raises:
        sqlite3.Error: there is no such file, and none can be made.
    """
    return sqlite3.connect(file, timeout=BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=64)


def open_memory() -> Opened:
    """A journal that ends with the process."""
    db = connect(":memory:")
    migrate(db)
    return Opened(db, Restored(), {})


def open_file(file: Path, *, keep_s: float, boot_id: str, wall: float) -> Opened:
    """Open a journal, or make one.

    Args:
        file: where it is; the directory is there. The caller holds its lock.
        keep_s: requests are remembered for so long after their end.
        boot_id: of this boot of the machine.
        wall: Unix seconds.

    Raises:
        JournalError: neither works.
    """
    try:
        return _open(file, keep_s, boot_id, wall)
    except _Unusable as why:
        aside = _set_aside(file, wall)
        _log.error("the journal %s cannot be used: %s; it is kept as %s, and a new one begins", file, why, aside)
        rest = salvage(aside, wall) if why.damaged else Salvage()
        _log.error("%d requests could be read out of it", len(rest.requests))
    except (sqlite3.Error, OSError) as error:
        raise _hopeless(file, error) from None
    try:
        _fill(file, rest)
        opened = _open(file, keep_s, boot_id, wall)
        return replace(opened, set_aside=aside, salvaged=len(rest.requests))
    except _Unusable as why:
        raise JournalError(f"the journal {file} cannot be made: {why}; check the disk") from None
    except (sqlite3.Error, OSError) as error:
        raise _hopeless(file, error) from None


def _hopeless(file: Path, error: sqlite3.Error | OSError) -> JournalError:
    if isinstance(error, OSError):
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return JournalFull(f"the journal {file} cannot be opened: {error.strerror}; make room there")
        return JournalError(
            f"the journal {file} cannot be used: {error.strerror}; check who owns it, or set journal.path"
        )
    kind = JournalFull if primary(error) == sqlite3.SQLITE_FULL else JournalError
    return kind(explain(error, file, max_bytes=0))


def _open(file: Path, keep_s: float, boot_id: str, wall: float) -> Opened:
    db = _connect(file)
    try:
        clean, before = bool(get_meta(db, "clean")), get_meta(db, "boot_id")
        if not clean:
            _check(db)
        migrate(db)
        same_boot = before in {None, boot_id}
        intact = clean or (same_boot and not get_meta(db, "torn"))
        # A clock that went back would have it remembered for longer.
        db.execute("UPDATE standings SET ended = ? WHERE ended > ?", (wall, wall))
        restored, live = restore(db, same_boot=same_boot, intact=intact, since=wall - keep_s)
        torn = frozenset() if intact else frozenset(live)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        _begin(db, boot_id, torn=bool(torn))
        sync_directory(file.parent)
        db.execute("PRAGMA synchronous = OFF")
    except BaseException as error:
        _close(db)
        if (why := _unusable(error)) is not None:
            raise why from None
        raise
    return Opened(db, restored, live, torn)


def _connect(file: Path) -> sqlite3.Connection:
    """A connection to a journal of ours, of any version that we know; all that is written waits for the disk yet."""
    _look_at(file)
    db = None
    try:
        db = connect(file)
        _set_up(db, file)
    except BaseException as error:
        if db is not None:
            _close(db)
        if (why := _unusable(error)) is not None:
            raise why from None
        raise
    return db


def _set_up(db: sqlite3.Connection, file: Path) -> None:
    """Make sure that it is ours, or nobody's; then it becomes ours."""
    made_by: int = db.execute("PRAGMA application_id").fetchone()[0]
    if made_by != APPLICATION_ID:
        if made_by or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise _Unusable("it is a database of another program", damaged=False)
        db.execute(f"PRAGMA page_size = {PAGE_SIZE}")
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise JournalError(f"the journal {file} cannot have a log (SQLite says {mode!r}); use a local disk")
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = OFF")  # zeros over what was deleted would be written, too
    db.execute("PRAGMA cache_spill = OFF")  # what is rolled back never comes to the log
    if made_by != APPLICATION_ID:
        migrate(db)


def _check(db: sqlite3.Connection) -> None:
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _Unusable(f"it is damaged ({found})", damaged=True)


def _look_at(file: Path) -> None:
    """Make the file if it is missing, and look at how it begins."""
    # Prompts are in it, so it is its owner's alone. Closed before SQLite has it: closing drops SQLite's locks.
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        head = os.read(descriptor, len(_MAGIC))
    finally:
        os.close(descriptor)
    if head and head != _MAGIC:
        raise _Unusable("it is no SQLite database, or its beginning is damaged", damaged=True)


def _unusable(error: BaseException) -> _Unusable | None:
    """What went wrong, if it is the file's content."""
    if isinstance(error, NewerError):
        return _Unusable(str(error), damaged=False)
    if isinstance(error, sqlite3.Error):
        if is_corruption(error) or primary(error) == sqlite3.SQLITE_IOERR:
            return _Unusable(f"it is damaged ({error})", damaged=True)
    elif isinstance(error, ValueError | TypeError | OverflowError):  # a column is not what it must be
        return _Unusable(f"it is damaged ({error})", damaged=True)
    return None


def _begin(db: sqlite3.Connection, boot_id: str, *, torn: bool) -> None:
    """Note, durably, that somebody writes now."""
    db.execute("BEGIN IMMEDIATE")
    set_meta(db, "boot_id", boot_id)
    set_meta(db, "clean", 0)
    set_meta(db, "torn", int(torn))
    db.execute("COMMIT")


def _fill(file: Path, rest: Salvage) -> None:
    """Make a journal of what was read out of the old one.

    Nothing of the streams is left, and they are in their next generation already, so there is nothing to doubt.
    """
    db = _connect(file)
    try:
        Scribe(db, {}).write([row for one in rest.requests for row in (one, Standing(one.uid, one.gen))])
        db.execute("BEGIN IMMEDIATE")
        set_meta(db, "last_uid", rest.last_uid)
        set_meta(db, "clean", 1)
        set_meta(db, "boot_id", rest.boot_id or "unknown")
        db.execute("COMMIT")
    finally:
        _close(db)


def _close(db: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        db.close()


def _set_aside(file: Path, wall: float) -> Path:
    """Rename a journal and what belongs to it.

    Raises:
        JournalError: it stays where it is.
    """
    for number in itertools.count():
        aside = file.with_name(f"{file.name}.set-aside-{int(wall)}{f'-{number}' if number else ''}")
        if not any(aside.with_name(aside.name + end).exists() for end in _BESIDE):
            break
    try:
        for end in reversed(_BESIDE):  # the database last: with it the next start knows that this was done
            old = file.with_name(file.name + end)
            if old.exists():
                old.rename(aside.with_name(aside.name + end))
    except OSError as error:
        raise JournalError(
            f"the journal {file} cannot be used, nor renamed: {error.strerror}; move it out of the way"
        ) from None
    return aside
