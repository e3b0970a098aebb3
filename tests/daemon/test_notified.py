"""What systemd hears of the daemon, from its start to its end."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.brokers import LocalBroker
from tests.fixtures import StartNode

pytestmark = pytest.mark.model

PATIENCE_S = 60.0


def hear(receiver: socket.socket, wanted: Callable[[str], bool]) -> list[str]:
    """What is said up to a line that is wanted."""
    lines: list[str] = []
    deadline = time.monotonic() + PATIENCE_S
    while not any(map(wanted, lines)):
        assert time.monotonic() < deadline, lines
        lines += receiver.recv(4096).decode().splitlines()
    return lines


def test_systemd_hears_that_it_is_up_how_it_is_that_it_lives_and_that_it_goes(
    private_broker: LocalBroker, start_node: StartNode, tmp_path: Path
) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(address))
        receiver.settimeout(PATIENCE_S)
        node = start_node(private_broker, ready=False, NOTIFY_SOCKET=str(address), WATCHDOG_USEC="2000000")
        said = hear(receiver, lambda line: line == "STATUS=starter: ready")
        assert said[:2] == ["READY=1", "STATUS=connecting to the broker | starter: loading"]
        hear(receiver, lambda line: line == "WATCHDOG=1")
        private_broker.kill()
        hear(receiver, lambda line: "no connection to the broker at" in line and line.endswith(" | starter: ready"))
        private_broker.start()
        hear(receiver, lambda line: line == "STATUS=starter: ready")
        node.terminate()
        assert "STATUS=draining | starter: ready" in hear(receiver, lambda line: line == "STOPPING=1")
