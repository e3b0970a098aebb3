"""Why a journal cannot be opened or written, as sentences for operators."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

#: With less than that free, it is the disk that is full, and not the journal. Bytes.
_NEARLY_FULL = 1 << 20


class JournalError(Exception):
    """The journal cannot be opened, and no new one can be made in its place. The text says what to do."""


class JournalFull(JournalError):  # noqa: N818 - it reads as what it is
    """There is no room on the disk even to open it; there may be later."""


class JournalBusy(JournalError):  # noqa: N818 - it reads as what it is
    """Another daemon has it open."""


def primary(error: sqlite3.Error) -> int:
    """SQLite's primary result code of an error, e.g. `sqlite3.SQLITE_FULL`; -1 where there is none."""
    code: int = getattr(error, "sqlite_errorcode", -1)
    return code & 0xFF if code >= 0 else -1


def is_corruption(error: sqlite3.Error) -> bool:
    """Whether an error says that the file's content is wrong, and not that it cannot be reached."""
    return primary(error) in {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_ERROR,  # a table or a column is missing
        sqlite3.SQLITE_SCHEMA,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
    }


def explain(error: sqlite3.Error, path: Path | None, *, max_bytes: int, needed: int = 0) -> str:
    """A sentence for why something could not be written.

    Args:
        error: SQLite's.
        path: of the journal; None = in memory.
        max_bytes: the bound on its size.
        needed: bytes that were to be written.
    """
    where = "in memory" if path is None else str(path)
    match primary(error):
        case sqlite3.SQLITE_FULL:
            free = free_bytes(path)
            if free is not None and free < needed + _NEARLY_FULL:
                return f"the disk is full: {free} bytes are free where the journal is ({where}); make room there"
            return (
                f"the journal {where} has reached journal.max_size ({max_bytes}) with requests that may not be "
                "forgotten yet; raise it or lower journal.keep_s"
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return f"the journal {where} is damaged ({error}); it is set aside at the next start"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            return f"the journal {where} cannot be written any more ({error}); check its directory and who owns it"
        case _:
            return f"the journal {where} cannot be written: {error}"


def free_bytes(path: Path | None) -> int | None:
    """What is left for us on the file system of a file, bytes; None where that is unknown."""
    if path is None:
        return None
    try:
        at = os.statvfs(path.parent)
    except OSError:
        return None
    return at.f_bavail * at.f_frsize
