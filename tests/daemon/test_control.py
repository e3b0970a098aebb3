"""The connection for control messages."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import structlog

from edged.config import Settings
from edged.daemon import Daemon
from edged.journal import Journal
from edged.mqtt.happenings import Ended, Ready
from edged.mqtt.settings import TlsError
from edged.testing import ScriptedEngine


def settings(directory: Path, **mqtt: object) -> Settings:
    return Settings(mqtt={"port": 1, **mqtt}, journal={"path": directory / "journal.db"})


def test_a_node_is_not_online_before_it_can_be_told_to_cancel_and_says_what_it_waits_for(tmp_path: Path) -> None:
    daemon = Daemon(settings(tmp_path), start_engine=ScriptedEngine)  # type: ignore[arg-type]  # all of it that is used
    try:
        assert daemon._events(Ready(object())) == []  # type: ignore[arg-type]
        with structlog.testing.capture_logs() as logs:
            assert daemon._from_control(Ended(1, "the broker refused it")) == []
        assert [(line["event"], line["reason"]) for line in logs] == [
            ("no connection for control messages", "the broker refused it")
        ]
    finally:
        daemon._journal.close(clean=True)


def test_a_daemon_that_cannot_be_made_lets_go_of_its_journal(tmp_path: Path) -> None:
    broken = settings(tmp_path, tls=True, ca_file=tmp_path / "missing.pem", host=socket.gethostname())
    with pytest.raises(TlsError):
        Daemon(broken, start_engine=ScriptedEngine)  # type: ignore[arg-type]  # all of it that is used
    Journal.open(
        tmp_path / "journal.db", keep_s=1, max_bytes=2**20, boot_id="b", wall=1.0, post=lambda _synced: None
    ).close(clean=True)
