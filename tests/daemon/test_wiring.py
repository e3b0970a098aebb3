"""What stands between the settings and the rooms."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged import wiring
from edged.config import Settings
from edged.journal import Journal, JournalFull


def test_a_disk_that_is_full_at_the_start_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(journal={"path": tmp_path / "journal.db"})
    waits: list[float] = []
    really = Journal.open

    def full(*args: object, **named: object) -> Journal:
        if len(waits) < 3:
            raise JournalFull("the disk is full")
        return really(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "open", full)
    monkeypatch.setattr("edged.wiring.time.sleep", waits.append)
    wiring.journal(settings, post=lambda _synced: None).close(clean=True)
    assert waits == [5.0, 5.0, 5.0]


def test_a_boot_that_cannot_be_told_counts_as_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "_BOOT_ID", tmp_path / "hidden")
    settings = Settings(journal={"path": tmp_path / "journal.db"})
    wiring.journal(settings, post=lambda _synced: None).close(clean=False)
    later = wiring.journal(settings, post=lambda _synced: None)
    restored = later.restored()
    later.close(clean=True)
    assert (restored.same_boot, restored.intact) == (False, False)
