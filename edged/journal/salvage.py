"""Reads requests out of a damaged journal: what was accepted is not to be lost with the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edged.core.records import NewRequest
from edged.journal.reader import REQUEST, request


@dataclass(frozen=True, slots=True)
class Salvage:
    """What could be read.

    Attributes:
        requests: those that had no final, in the generation that they are to be run in now.
        last_uid: the highest number of a request that was seen.
        boot_id: the boot of the machine that wrote the file; None where that cannot be read.
    """

    requests: tuple[NewRequest, ...] = ()
    last_uid: int = 0
    boot_id: str | None = None


def salvage(file: Path, wall: float) -> Salvage:
    """Read what can be read of a file that was set aside; the file stays as it is.

    A request whose standing cannot be read is taken for unfinished while its deadline lies ahead: to run it twice is
    the smaller evil.

    Args:
        file: the database; its log may stand beside it, under the same name with `-wal`.
        wall: Unix seconds.
    """
    with suppress(sqlite3.Error):
        uri = f"{file.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
            db.text_factory = lambda raw: raw.decode(errors="replace")
            return _read(db, wall)
    return Salvage()


def _read(db: sqlite3.Connection, wall: float) -> Salvage:
    standings = {row[0]: row[1:] for row in _rows(db, "SELECT uid, gen, ended FROM standings")}
    meta = dict(row for row in _rows(db, "SELECT key, value FROM meta", "key"))
    found: dict[int, NewRequest] = {}
    for row in _rows(db, f"SELECT {REQUEST} FROM requests"):  # noqa: S608 - our own names
        try:
            one = request(row)
        except ValueError:
            continue
        gen, ended = standings.get(one.uid, (None, None))
        if ended is not None or (gen is None and one.deadline.wall <= wall):
            continue
        last = max((number for number in (gen, one.gen) if isinstance(number, int)), default=1)
        found[one.uid] = replace(one, gen=last + 1)
    uids = [uid for uid in (*standings, *found, meta.get("last_uid")) if isinstance(uid, int)]
    boot_id = meta.get("boot_id")
    return Salvage(
        tuple(found[uid] for uid in sorted(found)),
        max(uids, default=0),
        boot_id if isinstance(boot_id, str) else None,
    )


def _rows(db: sqlite3.Connection, select: str, key: str = "uid") -> Iterator[tuple[Any, ...]]:
    """The rows that can be read: from the first to where it is damaged, then from the last back to there."""
    seen: set[object] = set()
    for order in ("ASC", "DESC"):
        try:
            for row in db.execute(f"{select} ORDER BY {key} {order}"):
                if row[0] in seen:
                    continue
                seen.add(row[0])
                yield row
        except sqlite3.Error:
            continue
        return
