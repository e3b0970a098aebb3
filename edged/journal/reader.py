"""Reads what was written. Nothing here catches errors: the journal does."""

from __future__ import annotations

import sqlite3
from array import array
from typing import Any

from edged.core.events import Now
from edged.core.records import Generated, Key, NewRequest, Past, Restored, Said, Standing, Unfinished
from edged.journal.schema import get_meta
from edged.journal.scribe import Live

#: The columns of a request, in the order that `request` takes them in.
REQUEST = """
    uid, client, id, digest, came_in, payload, response_topic, correlation, packet_id, seed, topic,
    arrived_mono, arrived_wall, deadline_mono, deadline_wall, requests.gen
"""
_PAST = "SELECT uid, client, id, digest, topic, correlation, standings.gen, messages, confirmed"
_UNDELIVERED = f"{_PAST} FROM standings JOIN requests USING (uid) WHERE ended > ? AND NOT delivered ORDER BY uid"
_FIND = f"""
    {_PAST} FROM requests JOIN standings USING (uid) WHERE id = ? AND client IS ? AND ended IS NOT NULL
    ORDER BY uid DESC LIMIT 1
"""
_REDELIVERED = "SELECT digest, client, id FROM requests WHERE packet_id = ? ORDER BY uid DESC LIMIT 1"
_FATE = "standings.gen, begun_with, fruitless, suspected_at, resumed, first_row"
_UNFINISHED = (
    f"SELECT {REQUEST}, {_FATE} FROM standings JOIN requests USING (uid) "  # noqa: S608 - our own names
    "WHERE ended IS NULL ORDER BY uid"
)
_SAID_SINCE = "SELECT uid, gen, seq, payload, text, tokens, confirmed FROM messages WHERE row >= ? ORDER BY row"
_MESSAGES = """
    SELECT row, seq, payload FROM messages
    WHERE row BETWEEN ? AND ? AND uid = ? AND gen = ? AND seq >= ? ORDER BY row
"""
_WHERE = "SELECT gen, first_row, last_row FROM standings WHERE uid = ?"
_INT, _TEXT, _BYTES, _REAL, _NONE = (int,), (str,), (bytes,), (float,), (type(None),)
_REQUEST_KINDS = (
    *(_INT, _TEXT + _NONE, _TEXT, _BYTES, _TEXT, _BYTES, _TEXT + _NONE, _BYTES + _NONE, _INT + _NONE, _INT, _TEXT),
    *(_REAL, _REAL, _REAL, _REAL, _INT),
)
_PAST_KINDS = (_INT, _TEXT + _NONE, _TEXT, _BYTES, _TEXT, _BYTES + _NONE, _INT, _INT, _INT)
_STANDING_KINDS = (_INT, _INT + _NONE, _INT, _INT + _NONE, _INT, _INT)
_SAID_KINDS = (_INT, _INT, _INT + _NONE, _BYTES + _NONE, _BYTES, _BYTES, _INT)
#: Streams that are being read from are remembered, up to so many.
_PLACES = 256


class Reader:
    """Answers questions about what was written.

    Args:
        db: the connection that writes: what was just written is there.
        live: the requests that have not ended, by uid.
    """

    def __init__(self, db: sqlite3.Connection, live: dict[int, Live]) -> None:
        self._db = db
        self._live = live
        self._places: dict[int, tuple[int, int, int]] = {}  # uid: (gen, seq, the first row where that may stand)

    def find(self, key: Key) -> Past | None:
        """The newest request of that name that has ended."""
        row = self._db.execute(_FIND, (key.id, key.client)).fetchone()
        return None if row is None else past(row)

    def redelivered(self, packet_id: int, digest: bytes) -> Key | None:
        """The newest request that came with this packet identifier, if its payload was the same."""
        row = self._db.execute(_REDELIVERED, (packet_id,)).fetchone()
        return Key(row[1], row[2]) if row is not None and row[0] == digest else None

    def messages(self, uid: int, gen: int, first: int, most: int) -> list[tuple[int, bytes]]:
        """The messages of the last generation of a request, from `seq` `first` on, without a gap."""
        where = self._where(uid, gen)
        if where is None or most <= 0:
            return []
        found: list[tuple[int, bytes]] = []
        place = self._places.get(uid)
        start = place[2] if place is not None and place[0] == gen and place[1] <= first else where[0]
        rows = self._db.execute(_MESSAGES, (start, where[1], uid, gen, first))
        try:
            for row, seq, payload in rows:
                if seq == first + len(found):
                    found.append((seq, payload))
                    if len(self._places) >= _PLACES:
                        self._places.clear()
                    self._places[uid] = (gen, seq + 1, row + 1)
                    if len(found) == most:
                        break
        finally:
            rows.close()
        return found

    def _where(self, uid: int, gen: int) -> tuple[int, int] | None:
        """The first and the last row where messages of this generation may stand."""
        live = self._live.get(uid)
        if live is not None:
            return (live.first_row, live.last_row) if live.gen == gen else None
        row = self._db.execute(_WHERE, (uid,)).fetchone()
        return None if row is None or row[0] != gen or row[2] is None else (row[1], row[2])


def restore(db: sqlite3.Connection, *, same_boot: bool, intact: bool, since: float) -> tuple[Restored, dict[int, Live]]:
    """What was left behind.

    Args:
        db: the journal.
        same_boot: see `Restored`.
        intact: see `Restored`.
        since: what ended before that is as good as forgotten, Unix seconds.

    Returns:
        It, and what is known of the requests in it that have not ended, by uid.

    Raises:
        sqlite3.Error: it cannot be read.
        ValueError: something in it is not what it must be.
    """
    rows = db.execute(_UNFINISHED).fetchall()
    for row in rows:
        _check(row[16:], _STANDING_KINDS)
    standings = {row[0]: Standing(row[0], *row[16:21]) for row in rows}
    said: dict[int, list[Said]] = {uid: [] for uid in standings}
    generated: dict[int, list[Generated]] = {uid: [] for uid in standings}
    for row in db.execute(_SAID_SINCE, (min((row[21] for row in rows), default=(1 << 63) - 1),)):
        _check(row, _SAID_KINDS)
        uid, gen, seq, payload, text, tokens, confirmed = row
        if uid not in standings or gen != standings[uid].gen:
            continue
        if seq is None:
            generated[uid].append(Generated(uid, gen, str(text, errors="surrogatepass"), numbers(tokens)))
        elif payload is None:
            raise ValueError("a message has no payload")
        elif seq == len(said[uid]):
            words = str(text, errors="surrogatepass")
            said[uid].append(Said(uid, gen, seq, payload, words, numbers(tokens), confirmed))
    unfinished = tuple(
        Unfinished(request(row), standings[row[0]], tuple(said[row[0]]), tuple(generated[row[0]])) for row in rows
    )
    last = db.execute("SELECT max(uid) FROM requests").fetchone()[0] or 0
    undelivered = tuple(past(row) for row in db.execute(_UNDELIVERED, (since,)))
    restored = Restored(max(int(get_meta(db, "last_uid") or 0), last), same_boot, intact, unfinished, undelivered)
    end = int(db.execute("SELECT max(row) FROM messages").fetchone()[0] or 0)
    live = {
        row[0]: Live(
            standings[row[0]].gen,
            row[21],
            max(end, row[21] - 1),
            len(said[row[0]]),
            max((one.confirmed for one in said[row[0]]), default=0),
        )
        for row in rows
    }
    return restored, live


def numbers(tokens: bytes) -> tuple[int, ...]:
    """Tokens from how they are kept."""
    read = array("I")
    read.frombytes(tokens)
    return tuple(read)


def past(row: tuple[Any, ...]) -> Past:
    """A request that has ended, from the columns of `_PAST`.

    Raises:
        ValueError: a column is not what it must be.
    """
    _check(row, _PAST_KINDS)
    return Past(row[0], Key(row[1], row[2]), *row[3:])


def request(row: tuple[Any, ...]) -> NewRequest:
    """A request from the columns of `REQUEST`; there may be more behind.

    Raises:
        ValueError: a column is not what it must be.
    """
    _check(row, _REQUEST_KINDS)
    uid, client, name, digest, came_in, payload, response_topic, correlation, packet_id, seed, topic = row[:11]
    return NewRequest(
        uid,
        Key(client, name),
        digest,
        came_in,
        payload,
        response_topic,
        correlation,
        packet_id,
        seed,
        topic,
        arrived=Now(*row[11:13]),
        deadline=Now(*row[13:15]),
        gen=row[15],
    )


def _check(row: tuple[Any, ...], kinds: tuple[tuple[type, ...], ...]) -> None:
    """SQLite takes any type into any column, and so a damaged row may have any."""
    for value, kind in zip(row, kinds, strict=False):
        if not isinstance(value, kind):
            raise ValueError(  # noqa: TRY004 - the file's mistake, not the caller's
                f"a column holds a {type(value).__name__} in place of {kind[0].__name__}"
            )
