"""Rows to write, and a journal with its mailbox."""

from __future__ import annotations

import queue
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

from edged.core.events import Now, Synced
from edged.core.records import Ended, Key, NewRequest, Said
from edged.journal import Journal

KEEP_S = 600.0
WALL = 1_000_000.0


def a_request(uid: int, *, name: str | None = None, packet_id: int | None = None, payload: bytes = b"{}") -> NewRequest:
    return NewRequest(
        uid=uid,
        key=Key("ann", name or f"r{uid}"),
        digest=bytes([uid % 256]) * 32,
        came_in=f"edged/v1/node/req/ann/r{uid}",
        payload=payload,
        response_topic=None,
        correlation=b"\x00c",
        packet_id=packet_id,
        seed=7,
        topic=f"edged/v1/node/reply/ann/r{uid}",
        arrived=Now(10.5, WALL),
        deadline=Now(70.5, WALL + 60),
    )


def a_message(uid: int, seq: int, *, gen: int = 1, confirmed: int = 0, size: int = 40) -> Said:
    payload = f"{uid}/{gen}/{seq}:".encode().ljust(size, b".")
    return Said(uid, gen, seq, payload, f"tëxt {seq} \U0001f600", (seq, 2**32 - 1), confirmed)


def a_past(uid: int, messages: int = 3, *, wall: float = WALL) -> list[NewRequest | Said | Ended]:
    """A request from its beginning to its end."""
    return [a_request(uid), *(a_message(uid, seq) for seq in range(messages)), Ended(uid, wall)]


def payloads(messages: Iterable[Said]) -> list[tuple[int, bytes]]:
    return [(one.seq, one.payload) for one in messages]


class Mailbox:
    """Takes what a journal posts."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Synced] = queue.SimpleQueue()

    def post(self, synced: Synced) -> None:
        self._queue.put(synced)

    def get(self) -> Synced:
        return self._queue.get(timeout=30)

    @property
    def is_empty(self) -> bool:
        return self._queue.empty()


def open_journal(
    path: Path | None,
    mailbox: Mailbox | None = None,
    *,
    boot_id: str = "boot 1",
    wall: float = WALL,
    max_bytes: int = 1 << 26,
) -> Journal:
    post = (mailbox or Mailbox()).post
    return Journal.open(path, keep_s=KEEP_S, max_bytes=max_bytes, boot_id=boot_id, wall=wall, post=post)


def cut_power(path: Path, to: Path, kept: int, chance: random.Random) -> Path:
    """Copy a journal as a power cut may leave it.

    Of the log only `kept` bytes are certain. Of the rest each sector may be there or not, and the end may be missing.
    """
    to.mkdir()
    shutil.copy(path, to)
    log = bytearray(path.with_name(f"{path.name}-wal").read_bytes())
    for at in range(kept, len(log), 512):
        if chance.random() < 0.5:
            log[at : at + 512] = bytes(len(log[at : at + 512]))
    if chance.random() < 0.5:
        del log[chance.randint(kept, max(kept, len(log))) :]
    (to / f"{path.name}-wal").write_bytes(log)
    return to / path.name
