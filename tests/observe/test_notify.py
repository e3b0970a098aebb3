"""What systemd hears, over a real datagram socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.observe import notify
from edged.observe.notify import Notifier, watchdog_interval_s


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The other end, and its address."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(5)
        yield receiver, address


def test_systemd_hears_ready_status_watchdog_and_stopping(
    monkeypatch: pytest.MonkeyPatch, systemd: tuple[socket.socket, str]
) -> None:
    receiver, address = systemd
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notifier = Notifier()
    assert notifier.ready("starter loaded")
    assert receiver.recv(4096) == b"READY=1\nSTATUS=starter loaded"
    assert notifier.status("2 running, 1 waiting: ü")
    assert receiver.recv(4096) == "STATUS=2 running, 1 waiting: ü".encode()
    assert notifier.watchdog()
    assert receiver.recv(4096) == b"WATCHDOG=1"
    assert notifier.stopping("draining")
    assert receiver.recv(4096) == b"STOPPING=1\nSTATUS=draining"


def test_an_abstract_address_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("")  # Linux chooses a free abstract name (unix(7), autobind)
        receiver.settimeout(5)
        assert Notifier("@" + receiver.getsockname()[1:].decode()).watchdog()
        assert receiver.recv(4096) == b"WATCHDOG=1"


def test_a_status_cannot_smuggle_in_another_assignment(systemd: tuple[socket.socket, str]) -> None:
    receiver, address = systemd
    Notifier(address).status("loading\nMAINPID=1\r\nREADY=1")
    assert receiver.recv(4096) == b"STATUS=loading MAINPID=1 READY=1"


@pytest.mark.parametrize("address", ["", "relative/path", "vsock:2:1234"])
def test_without_a_socket_of_systemds_nothing_is_sent_and_nothing_fails(address: str) -> None:
    notifier = Notifier(address)
    assert not any((notifier.ready("x"), notifier.status("x"), notifier.watchdog(), notifier.stopping("draining")))


def test_without_the_variable_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert Notifier().watchdog() is False


def test_a_socket_that_is_gone_does_not_stop_the_daemon(tmp_path: Path) -> None:
    assert Notifier(str(tmp_path / "gone")).watchdog() is False
    assert Notifier("/" + "x" * 200).watchdog() is False
    assert Notifier("@" + "x" * 200).watchdog() is False


def test_a_receiver_that_does_not_read_does_not_hold_the_daemon_up(
    monkeypatch: pytest.MonkeyPatch, systemd: tuple[socket.socket, str]
) -> None:
    monkeypatch.setattr(notify, "_SEND_TIMEOUT_S", 0.01)
    _, address = systemd
    notifier = Notifier(address)
    sent = 0
    while notifier.watchdog():  # until the queue is full (net.unix.max_dgram_qlen, 10 to some hundreds)
        sent += 1
        assert sent < 100_000
    assert sent > 0


def test_threads_may_notify_at_once(systemd: tuple[socket.socket, str]) -> None:
    receiver, address = systemd
    notifier = Notifier(address)
    threads = [threading.Thread(target=notifier.status, args=(f"from {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    heard = {receiver.recv(4096) for _ in threads}
    for thread in threads:
        thread.join()
    assert heard == {f"STATUS=from {i}".encode() for i in range(8)}


@pytest.mark.parametrize(
    ("limit", "pid", "interval"),
    [
        ("30000000", "own", 15.0),
        ("30000000", None, 15.0),
        ("30000000", "1", None),
        ("0", "own", None),
        ("", None, None),
        (None, None, None),
        ("soon", None, None),
        ("-5", None, None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_limit_by_the_process_it_watches(
    monkeypatch: pytest.MonkeyPatch, limit: str | None, pid: str | None, interval: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", limit), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_interval_s() == interval
