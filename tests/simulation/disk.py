"""The disk that the journal is on: the real journal, in memory, with process deaths, power cuts and a full disk.

`edged.journal` opens files; here its parts work on a database in memory, which outlives the `Journal` object as a file
outlives the process. What `edged.journal.opening` does with a file at the start is done here, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from edged.core.events import Synced
from edged.core.records import NewRequest, Restored, Row, Said, Standing, Withdrawn
from edged.journal import Journal
from edged.journal.opening import Opened, _begin, connect, open_memory
from edged.journal.reader import restore
from edged.journal.schema import get_meta, set_meta
from edged.journal.scribe import Live, Scribe
from tests.simulation.clock import Agenda, Clock

KEEP_S = 1e6


class Disk:
    """One journal through all its daemons.

    Args:
        sync_s: how long a sync takes at most.

    Attributes:
        full: nothing can be written.
        failing: what is written does not get to the disk.
        is_clean: the last daemon that ended in order could say so.
        said: the request of every message that is written, by payload.
        journal: the one that is open.
        distrusts: whether a power cut is noticed.
    """

    distrusts = True

    def __init__(self, agenda: Agenda, clock: Clock, rng: random.Random, *, sync_s: float) -> None:
        self._sync_s = sync_s
        self._agenda = agenda
        self._clock = clock
        self._rng = rng
        self.full = False
        self.failing = False
        self.is_clean = True
        self.said: dict[bytes, int] = {}
        self.journal: Journal
        self._db = open_memory().db
        set_meta(self._db, "clean", 1)
        self._post: Callable[[Synced], None]
        self._life = 0
        self._wanted: int | None = None
        self._syncing = False
        self._failed = False
        self._mark()

    def _mark(self, live: dict[int, Live] | None = None, torn: frozenset[int] = frozenset()) -> None:
        """All that is there survives a power cut."""
        self._image = self._db.serialize()
        self._live = {uid: replace(one) for uid, one in (live or {}).items()}
        self._torn = torn
        self._since: list[tuple[Row, ...]] = []
        self._durable = 0
        rows = self._db.execute("SELECT uid, correlation FROM requests").fetchall()
        self._when: dict[int, int] = {row[0]: 0 for row in rows}
        standings = self._db.execute("SELECT uid, gen FROM standings").fetchall()
        self._gens: dict[tuple[int, int], int] = {(row[0], row[1]): 0 for row in standings}
        self._correlations: dict[bytes | None, int] = {row[1]: 0 for row in rows}

    # --- a daemon's life ---

    def open(self, post: Callable[[Synced], None]) -> Restored:
        """A daemon starts: what it finds. `post` takes the answers to `sync`."""
        self._life += 1
        self._post, self._wanted, self._syncing, self._failed = post, None, False, False
        db, now, boot_id = self._db, self._clock.now, self._clock.boot_id
        clean, before = bool(get_meta(db, "clean")), get_meta(db, "boot_id")
        same_boot = before in {None, boot_id}
        intact = clean or (same_boot and not get_meta(db, "torn"))
        restored, live = restore(db, same_boot=same_boot, intact=intact, since=now.wall - KEEP_S)
        if not self.distrusts:
            intact, restored = True, replace(restored, intact=True)
        torn = frozenset() if intact else frozenset(live)
        _begin(db, boot_id, torn=bool(torn))
        self._mark(live, torn)
        opened = Opened(db, restored, live, torn)
        self.journal = Journal(None, opened, None, keep_s=KEEP_S, max_bytes=1 << 30, post=post)
        return restored

    def close(self) -> None:
        """The daemon ends in order."""
        self._life += 1
        self.is_clean = not self.full and not self.failing
        if self.is_clean and not self.journal._scribe.torn:
            set_meta(self._db, "clean", 1)
            self._mark()

    def die(self) -> None:
        """The daemon's process is gone: nothing is answered any more, and all that is written stays."""
        self._life += 1

    def lose_power(self) -> None:
        """What is synced stays, and of what was written since then the first part."""
        self.die()
        self.lose_writes()

    def lose_writes(self) -> None:
        """The same, but that somebody was there to see it."""
        kept = self._rng.randint(self._durable, len(self._since))
        self._db.close()
        self._db = connect(":memory:")
        self._db.deserialize(self._image)
        scribe = Scribe(self._db, self._live, self._torn)
        for rows in self._since[:kept]:
            scribe.write(rows)
        self._mark()

    # --- what the daemon does ---

    def write(self, rows: Sequence[Row]) -> str | None:
        """See `Journal.write`."""
        if self.full:
            return "the disk is full: make room"
        if not rows and self._failed and not self.failing:
            self._failed = False
        error = self.journal.write(rows)
        if error is not None:
            return error
        self._since.append(tuple(rows))
        for row in rows:
            if isinstance(row, NewRequest | Standing | Said):
                self._gens.setdefault((row.uid, row.gen), len(self._since))
            if isinstance(row, Said):
                self.said[row.payload] = row.uid
            elif isinstance(row, NewRequest):
                self._when[row.uid] = len(self._since)
                self._correlations.setdefault(row.correlation, len(self._since))
            elif isinstance(row, Withdrawn):
                self._when.pop(row.uid, None)
        return None

    def sync(self, number: int) -> None:
        """See `Journal.sync`: it takes a while, and counts for all that was written before it began."""
        self._wanted = number
        if not self._syncing:
            self._begin_sync()

    def _begin_sync(self) -> None:
        number, self._wanted = self._wanted, None
        if number is None:
            return
        self._syncing = True
        life, written = self._life, len(self._since)
        self._agenda.after(self._rng.random() * self._sync_s, lambda: self._end_sync(life, number, written))

    def _end_sync(self, life: int, number: int, written: int) -> None:
        if life != self._life:
            return
        self._syncing = False
        self._failed = self._failed or self.failing
        if not self._failed:
            self._durable = written
        self._post(Synced(number, "the disk cannot keep the journal: check it" if self._failed else None))
        self._begin_sync()

    # --- what the simulation wants to know ---

    def is_durable(self, uid: int, gen: int | None = None) -> bool:
        """Whether a request survives a power cut now; or that it has come to a generation."""
        when = self._when.get(uid) if gen is None else self._gens.get((uid, gen))
        return when is not None and when <= self._durable

    def has_request(self, correlation: bytes | None) -> bool:
        """Whether the first request with this correlation data survives a power cut now."""
        return self._correlations.get(correlation, len(self._since) + 1) <= self._durable

    def requests(self) -> list[tuple[int, str | None, str, bytes | None, bool, bool]]:
        """All that are there: uid, client, id, correlation data, whether it has ended, whether the broker has all."""
        return self._db.execute(
            "SELECT uid, client, id, correlation, ended IS NOT NULL, delivered != 0 "
            "FROM requests JOIN standings USING (uid) ORDER BY uid"
        ).fetchall()

    def count(self) -> dict[bytes | None, int]:
        """How many there are of each correlation data."""
        rows: list[tuple[bytes | None, int]] = self._db.execute(
            "SELECT correlation, count(*) FROM requests GROUP BY correlation"
        ).fetchall()
        return dict(rows)

    def past(self, uid: int) -> tuple[int, int, int]:
        """Of a request that has ended: its last generation, 0, and how many messages it said."""
        row: tuple[int, int] = self._db.execute("SELECT gen, messages FROM standings WHERE uid = ?", (uid,)).fetchone()
        return row[0], 0, row[1]

    def discard(self) -> None:
        """The world is over."""
        self._db.close()
