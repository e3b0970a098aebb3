"""Journals that are closed at the end of a test, whatever became of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from edged.journal import Journal
from tests.journal.rows import WALL, Mailbox, open_journal


class Open(Protocol):
    def __call__(
        self,
        path: Path | None = None,
        mailbox: Mailbox | None = None,
        *,
        boot_id: str = "boot 1",
        wall: float = WALL,
        max_bytes: int = 1 << 26,
    ) -> Journal: ...


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


@pytest.fixture
def open_it(path: Path) -> Iterator[Open]:
    """Open the journal at `path`, or another."""
    opened: list[Journal] = []

    def open_one(
        path: Path | None = path,
        mailbox: Mailbox | None = None,
        *,
        boot_id: str = "boot 1",
        wall: float = WALL,
        max_bytes: int = 1 << 26,
    ) -> Journal:
        journal = open_journal(path, mailbox, boot_id=boot_id, wall=wall, max_bytes=max_bytes)
        opened.append(journal)
        return journal

    yield open_one
    for journal in opened:
        journal.close(clean=False)
