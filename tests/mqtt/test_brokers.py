"""The fixtures that every broker test rests on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests import brokers
from tests.brokers import Broker, LocalBroker
from tests.conftest import StartBroker, _no_broker


def accepts(broker: Broker) -> bool:
    try:
        with socket.create_connection((broker.host, broker.port), timeout=2):
            return True
    except ConnectionRefusedError:
        return False


def test_the_shared_broker_accepts_connections(broker: Broker) -> None:
    assert accepts(broker)
    assert broker.log()


def test_a_private_broker_can_be_killed_and_comes_back_on_the_same_port(private_broker: LocalBroker) -> None:
    port = private_broker.port
    private_broker.kill()
    assert not private_broker.running
    assert not accepts(private_broker)
    private_broker.start()
    assert private_broker.port == port
    assert accepts(private_broker)
    private_broker.stop()
    assert not accepts(private_broker)


def test_a_paused_broker_accepts_connections_and_can_be_stopped(private_broker: LocalBroker) -> None:
    private_broker.pause()
    assert accepts(private_broker)
    private_broker.stop()
    assert not private_broker.running


def test_a_port_lost_to_a_race_is_replaced(start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    free_port = brokers.free_port
    with socket.create_server(("127.0.0.1", 0)) as taken:
        offered = iter([taken.getsockname()[1]])
        monkeypatch.setattr(brokers, "free_port", lambda: next(offered, None) or free_port())
        broker = start_broker()
        assert broker.port != taken.getsockname()[1]


def test_a_missing_broker_says_how_to_install_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(brokers, "SBIN", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(brokers.NoBrokerError, match=r"apt-get install .*mosquitto"):
        brokers.binary()


def test_in_ci_a_missing_broker_fails_and_elsewhere_it_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="install it"):
        _no_broker(brokers.NoBrokerError("install it"))
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="install it"):
        _no_broker(brokers.NoBrokerError("install it"))
