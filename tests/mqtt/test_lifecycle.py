"""How a connection starts, keeps itself alive, pauses and stops."""

from __future__ import annotations

import itertools
import queue
import socket
import threading
import time
from typing import Any

import pytest
from paho.mqtt.client import Client

from edged.mqtt.connection import Connection
from tests.mqtt.harness import Core
from tests.mqtt.scripted import PATIENCE_S, ScriptedBroker, Session, polite


def test_the_pauses_between_attempts_grow_and_are_bounded() -> None:
    with ScriptedBroker(polite) as broker:
        pass
    with Core(broker, backoff_min_s=0.01, backoff_max_s=0.04) as core:
        core.pump(lambda: len(core.reasons) == 6)
        pauses = [core.connection._pause(failures) for failures in range(50)]
        bounds = [0.01, 0.02] + [0.04] * 48
        assert all(most / 2 <= pause <= most for pause, most in zip(pauses, bounds, strict=True))
        assert len(set(pauses)) > 10, "no jitter: a fleet would come back in one moment"


def test_stopping_does_not_wait_for_a_pause() -> None:
    with ScriptedBroker(polite) as broker:
        pass
    with Core(broker, backoff_min_s=3600, backoff_max_s=3600) as core:
        core.pump(lambda: core.reasons)
        assert core.connection.stop(PATIENCE_S)
        assert not core.connection.alive


def test_stopping_says_goodbye_after_what_was_published() -> None:
    with ScriptedBroker(polite) as broker, Core(broker) as core:
        core.connect()
        core.publish("last", qos=0)
        assert core.connection.stop(PATIENCE_S)
        broker.wait(lambda b: b.goodbyes == [1])
        assert broker.topics == ["last"]
        assert core.connection.stop(0), "stopping twice"


def test_stopping_is_bounded_where_the_broker_reads_nothing() -> None:
    released = threading.Event()

    def script(session: Session) -> None:
        session.accept(receive_maximum=200)
        released.wait(PATIENCE_S)

    with ScriptedBroker(script) as broker, Core(broker, window=200) as core:
        core.connect()
        for _ in range(200):
            core.publish("t", b"x" * 200_000)  # more than the kernel's buffers hold
        assert core.connection.stop(0.5)
        released.set()


def test_a_silent_broker_is_asked_after_one_keepalive_and_given_up_after_one_and_a_half() -> None:
    asked: queue.SimpleQueue[float] = queue.SimpleQueue()

    def answering_once(session: Session) -> None:
        session.accept()
        heard = time.monotonic()
        for answer in (True, False):
            kind, _, _ = session.read()
            assert kind == 12
            asked.put(time.monotonic() - heard)
            if answer:
                session.send(b"\xd0\x00")
                heard = time.monotonic()
        with pytest.raises(EOFError):
            session.read()
        asked.put(time.monotonic() - heard)
        raise EOFError

    with ScriptedBroker(answering_once, polite) as broker, Core(broker, keepalive_s=1) as core:
        core.pump(lambda: core.times_connected == 2)
        assert "was silent for 1.5 s" in core.reasons[0]
        first, second, given_up = (asked.get(timeout=PATIENCE_S) for _ in range(3))
        assert first >= 0.9
        assert second >= 0.9
        assert given_up >= 1.4


@pytest.mark.parametrize("where", ["_next_deadline", "_wait", "_overdue"])
@pytest.mark.parametrize("keepalives", [1.2, 1.7])
def test_who_stood_still_asks_the_broker_before_giving_it_up(
    monkeypatch: pytest.MonkeyPatch, where: str, keepalives: float
) -> None:
    """A machine that slept, a process that was stopped: there the silence is not the broker's."""
    from edged.mqtt.link import Link

    connected, stood_still = threading.Event(), threading.Event()
    method = getattr(Link, where)

    def stand_still(*args: Any) -> Any:
        if connected.is_set() and not stood_still.is_set():
            time.sleep(keepalives)
            stood_still.set()
        return method(*args)

    monkeypatch.setattr(Link, where, stand_still)
    with ScriptedBroker(polite) as broker, Core(broker, keepalive_s=1) as core:
        core.connect()
        connected.set()
        core.publish("wakes it up", qos=0)
        assert stood_still.wait(PATIENCE_S)
        core.linger(1.8)
        assert core.reasons == []


def test_the_brokers_keepalive_counts_where_it_insists() -> None:
    asked = threading.Event()

    def script(session: Session) -> None:
        session.accept(server_keep_alive=1)
        session.read()
        asked.set()

    with ScriptedBroker(script, polite) as broker, Core(broker, keepalive_s=3600) as core:
        core.connect()
        assert asked.wait(PATIENCE_S)


def test_a_broker_that_wants_no_keepalive_is_left_in_peace() -> None:
    def script(session: Session) -> None:
        session.accept(server_keep_alive=0)
        session.serve()

    with ScriptedBroker(script) as broker, Core(broker, keepalive_s=1) as core:
        core.connect()
        core.publish("t", token=1)
        core.pump(lambda: core.confirmed)
        assert core.connection.alive


def test_an_idle_connection_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing wakes it but the keepalive, on battery every wake-up counts. (paho's own loop wakes every second.)"""
    from edged.mqtt.link import Link

    turns = itertools.count()
    wait = Link._wait
    monkeypatch.setattr(Link, "_wait", lambda *args: wait(*args) if next(turns) >= 0 else None)
    with ScriptedBroker(polite) as broker, Core(broker) as core:
        core.connect()
        before = next(turns)
        with pytest.raises(queue.Empty):
            core.inbox.get(timeout=2.5)
        assert next(turns) - before <= 2, "that, and the turn after the SUBACK"


def test_it_is_started_once() -> None:
    with ScriptedBroker(polite) as broker, Core(broker) as core, pytest.raises(RuntimeError, match="make a new one"):
        core.connection.start()


def test_one_that_was_never_started_can_be_stopped() -> None:
    with ScriptedBroker(polite) as broker:
        core = Core(broker)
        assert not core.connection.alive
        assert core.connection.stop(1)


def test_only_a_connection_that_held_makes_the_pauses_short_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that takes the connection and drops it at once must not be hammered."""

    def dropping(session: Session) -> None:
        session.accept()

    for steady_s, expected in ((3600, [0, 1, 2, 3]), (0, [0, 0, 0, 0])):
        asked: list[int] = []
        monkeypatch.setattr(Connection, "_pause", lambda _, failures, asked=asked: asked.append(failures) or 0.01)
        with ScriptedBroker(dropping) as broker, Core(broker, steady_s=steady_s) as core:
            core.pump(lambda: len(core.reasons) >= 4)
            assert core.times_connected >= 4
        assert asked[:4] == expected


def test_only_its_own_thread_writes_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads in one TLS connection is one too many, and paho writes from the thread that publishes if it can."""
    writers = set()
    send = Client._sock_send

    def watched(client: Client, data: bytes) -> int:
        writers.add(threading.current_thread().name)
        return send(client, data)

    monkeypatch.setattr(Client, "_sock_send", watched)
    with ScriptedBroker(polite) as broker, Core(broker, subscriptions=["req"]) as core:
        core.connect()
        for n in range(50):
            core.publish("t", token=n, qos=n % 2)
        core.pump(lambda: len(core.confirmed) == 50)
    assert writers == {"edged-mqtt"}


def test_a_supervisor_that_hangs_is_not_alive() -> None:
    """The watchdog is fed by this; a connection that was silent for too long should have been given up."""
    with ScriptedBroker(polite) as broker, Core(broker, keepalive_s=30) as core:
        core.connect()
        link = core.connection._link
        assert link is not None
        assert core.connection.alive
        link.heard -= 61
        assert not core.connection.alive


def test_a_small_packet_does_not_wait_for_the_one_before_it() -> None:
    """Nagle's algorithm would hold a chunk back until the last one is acknowledged, up to 40 ms."""
    with ScriptedBroker(polite) as broker, Core(broker) as core:
        core.connect()
        link = core.connection._link
        assert link is not None
        assert link._client is not None
        sock = link._client.socket()
        assert isinstance(sock, socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
