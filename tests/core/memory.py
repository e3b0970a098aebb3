"""What a journal keeps, in plain lists: the model that the core's tests work with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from edged.core.records import (
    Delivered,
    Ended,
    Generated,
    Key,
    NewRequest,
    Past,
    Restored,
    Row,
    Said,
    Standing,
    Unfinished,
    Withdrawn,
)

_Row = TypeVar("_Row", bound=Row)


class Memory:
    """Keeps rows, and answers the core's questions (`edged.core.records.History`).

    Attributes:
        full: why nothing can be written; None where it can.
        rows: everything that was written.
    """

    def __init__(self) -> None:
        self.full: str | None = None
        self.rows: list[Row] = []
        self._of: dict[int, list[Row]] = {}
        self._keys: dict[Key, int] = {}

    def write(self, rows: Sequence[Row]) -> str | None:
        if self.full is None:
            self.rows += rows
            for row in rows:
                self._of.setdefault(row.uid, []).append(row)
                if isinstance(row, NewRequest):
                    self._keys[row.key] = row.uid
                elif isinstance(row, Withdrawn):
                    del self._of[row.uid]
        return self.full

    def restored(self, *, intact: bool = True, same_boot: bool = True) -> Restored:
        uids = sorted(self._of)
        return Restored(
            last_uid=max((row.uid for row in self.rows), default=0),
            same_boot=same_boot,
            intact=intact,
            unfinished=tuple(self._unfinished(uid) for uid in uids if not self._all(Ended, uid)),
            undelivered=tuple(
                self._past(uid) for uid in uids if self._all(Ended, uid) and not self._all(Delivered, uid)
            ),
        )

    def find(self, key: Key) -> Past | None:
        uid = self._keys.get(key)
        return self._past(uid) if uid is not None and self._all(Ended, uid) else None

    def redelivered(self, packet_id: int, digest: bytes) -> Key | None:
        found = [self._request(uid) for uid in sorted(self._of) if self._request(uid).packet_id == packet_id]
        return found[-1].key if found and found[-1].digest == digest else None

    def messages(self, uid: int, gen: int, first: int, most: int) -> list[tuple[int, bytes]]:
        return [(one.seq, one.payload) for one in self._said(uid, gen) if one.seq >= first][:most]

    def _all(self, kind: type[_Row], uid: int) -> list[_Row]:
        return [row for row in self._of.get(uid, ()) if isinstance(row, kind)]

    def _request(self, uid: int) -> NewRequest:
        return self._all(NewRequest, uid)[0]

    def _said(self, uid: int, gen: int) -> list[Said]:
        return [row for row in self._all(Said, uid) if row.gen == gen]

    def _standing(self, uid: int) -> Standing:
        found = self._all(Standing, uid)
        return found[-1] if found else Standing(uid, self._request(uid).gen)

    def _unfinished(self, uid: int) -> Unfinished:
        standing = self._standing(uid)
        pieces = [row for row in self._all(Generated, uid) if row.gen == standing.gen]
        return Unfinished(self._request(uid), standing, tuple(self._said(uid, standing.gen)), tuple(pieces))

    def _past(self, uid: int) -> Past:
        request, gen = self._request(uid), self._standing(uid).gen
        said = self._said(uid, gen)
        confirmed = len(said) if self._all(Delivered, uid) else max((one.confirmed for one in said), default=0)
        return Past(uid, request.key, request.digest, request.topic, request.correlation, gen, len(said), confirmed)
