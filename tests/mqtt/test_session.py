"""The session that a broker keeps between two connections: what comes meanwhile, and what comes again."""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from edged.core.events import BrokerConnected, MessageArrived
from edged.mqtt.happenings import Ack
from edged.mqtt.settings import Settings
from tests.brokers import Broker, LocalBroker
from tests.conftest import StartBroker
from tests.mqtt import packets
from tests.mqtt.harness import Consumer, Core
from tests.mqtt.scripted import PATIENCE_S, ScriptedBroker, Session, polite

both_versions = pytest.mark.parametrize("version", [5, "3.1.1"])
#: Session Expiry Interval (MQTT 5.0, 3.1.2.11.2).
SESSION_EXPIRY = 0x11


@pytest.fixture
def root(broker: Broker) -> Iterator[str]:
    """Topics and client identifiers that no other test on the shared broker uses; their sessions end with the test."""
    name = f"session-{uuid4().hex[:8]}"
    yield name
    for version in (5, "3.1.1"):
        with Core(broker, name=name, version=version) as core:
            core.connect()


@contextmanager
def lasting(broker: Any, name: str, version: object = 5, **settings: Any) -> Iterator[Core]:
    """The core with a session that outlives it."""
    with Core(
        broker, name=name, subscriptions=[f"{name}/req/#"], version=version, session_expiry_s=600, **settings
    ) as core:
        yield core


def break_connection(core: Core) -> None:
    """End it as a network does, without a word of MQTT, and wait for the next."""
    times = core.times_connected
    link = core.connection._link
    assert link is not None
    assert link._client is not None
    sock = link._client.socket()
    assert isinstance(sock, socket.socket)
    sock.shutdown(socket.SHUT_RDWR)
    core.pump(lambda: core.times_connected > times)


def seen(message: MessageArrived) -> tuple[bytes, int | None, bool]:
    return message.payload, message.packet_id, message.duplicate


# --- what the broker is told ---


@both_versions
@pytest.mark.parametrize("expiry_s", [0, 3600, 4_294_967_295])
def test_every_connection_asks_for_the_session_that_is_wanted(version: object, expiry_s: int) -> None:
    def dropping(session: Session) -> None:
        session.accept()

    with (
        ScriptedBroker(dropping, dropping, polite) as broker,
        Core(broker, version=version, session_expiry_s=expiry_s) as core,
    ):
        core.pump(lambda: core.times_connected >= 3)
        for connect in broker.connects:
            assert connect.clean_start == (expiry_s == 0)
            wanted = bytes([SESSION_EXPIRY]) + expiry_s.to_bytes(4, "big")
            assert (wanted in connect.properties) == (version == 5 and expiry_s > 0)


@pytest.mark.parametrize("expiry_s", [-1, 4_294_967_296])
def test_an_expiry_that_mqtt_cannot_say_is_refused(expiry_s: int) -> None:
    with pytest.raises(ValueError, match=rf"session_expiry_s is {expiry_s}; it has to be between 0 and 4294967295"):
        Settings(host="h", port=1883, client_id="c", keepalive_s=30, session_expiry_s=expiry_s)


@both_versions
def test_a_goodbye_leaves_the_session_as_it_was_asked_for(version: object) -> None:
    goodbyes: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def script(session: Session) -> None:
        session.accept()
        while True:
            kind, _, body = session.read()
            if kind == packets.DISCONNECT:
                goodbyes.put(body)
                return

    with ScriptedBroker(script) as broker, Core(broker, version=version, session_expiry_s=60) as core:
        core.connect()
        assert core.connection.stop(PATIENCE_S)
        assert goodbyes.get(timeout=PATIENCE_S) in (b"", b"\0", b"\0\0"), "a DISCONNECT with properties"


@pytest.mark.parametrize("has_will", [False, True])
def test_a_connection_may_have_no_will(has_will: bool) -> None:
    with ScriptedBroker(polite) as broker, Core(broker, has_will=has_will) as core:
        core.connect()
        assert [connect.will for connect in broker.connects] == [has_will]
        core.publish("t", token=1)
        core.pump(lambda: core.confirmed == [1])


# --- what the core is told ---


@both_versions
def test_the_core_hears_whether_the_session_was_there_and_how_large_a_packet_may_be(version: object) -> None:
    def fresh(session: Session) -> None:
        session.accept()

    def kept(session: Session) -> None:
        if version == 5:
            session.accept(session_present=True, maximum_packet_size=70_000)
        else:
            session.accept(session_present=True)
        session.serve()

    with ScriptedBroker(fresh, kept) as broker, Core(broker, version=version, session_expiry_s=60) as core:
        core.pump(lambda: core.times_connected == 2)
        assert core.of(BrokerConnected) == [
            BrokerConnected(session_present=False, maximum_packet=None),
            BrokerConnected(session_present=True, maximum_packet=70_000 if version == 5 else None),
        ]


@both_versions
def test_a_message_comes_with_its_packet_identifier_and_whether_it_has_come_before(version: object) -> None:
    def script(session: Session) -> None:
        session.accept()
        session.send(session.codec.make_publish(b"req", b"new", qos=1, mid=700))
        session.send(session.codec.make_publish(b"req", b"again", qos=1, mid=65535, dup=True))
        session.send(session.codec.make_publish(b"req", b"loose"))
        session.serve()

    with ScriptedBroker(script) as broker, Core(broker, version=version) as core:
        core.pump(lambda: len(core.arrived) == 3)
        assert [seen(m) for m in core.arrived] == [
            (b"new", 700, False),
            (b"again", 65535, True),
            (b"loose", None, False),
        ]


def test_what_comes_before_the_subscription_is_granted_is_handed_on_and_acknowledged() -> None:
    """A broker delivers what it kept as soon as it has accepted the connection."""
    acknowledged = threading.Event()

    def script(session: Session) -> None:
        session.accept(session_present=True)
        session.send(session.codec.make_publish(b"req", b"kept", qos=1, mid=9, dup=True))
        subscribe = session.read_subscribe()
        kind, _, body = session.read()
        assert (kind, body[:2]) == (packets.PUBACK, b"\0\x09")
        acknowledged.set()
        session.send(session.codec.make_suback(subscribe.mid, [1]))
        session.serve()

    with ScriptedBroker(script) as broker, Core(broker, subscriptions=["req"], session_expiry_s=60) as core:
        core.pump(lambda: core.arrived)
        assert core.times_connected == 0
        core.acknowledge(core.arrived[0].ack)
        assert acknowledged.wait(PATIENCE_S)
        core.connect()


def test_acknowledgements_of_two_connections_are_not_the_same() -> None:
    """A daemon has two of them, and each counts from 1."""

    def script(session: Session) -> None:
        session.accept()
        session.send(session.codec.make_publish(b"req", b"x", qos=1, mid=1))
        session.serve()

    with ScriptedBroker(script) as broker, Core(broker, name="a") as one, Core(broker, name="b") as other:
        for core in (one, other):
            core.pump(lambda core=core: core.arrived)  # type: ignore[misc]  # mypy wants a type
        acks = [core.arrived[0].ack for core in (one, other)]
        assert [(ack.connection, ack.mid) for ack in acks if isinstance(ack, Ack)] == [(1, 1), (1, 1)]
        assert len(set(acks)) == 2


# --- with a real broker ---


@both_versions
def test_what_is_sent_between_two_connections_is_delivered_on_the_next(
    broker: Broker, root: str, version: object
) -> None:
    with Consumer(broker, f"{root}/none") as consumer:
        with lasting(broker, root, version) as core:
            core.connect()
            assert core.of(BrokerConnected)[0].session_present is False
        consumer.publish(f"{root}/req/1", b"after a goodbye")
        with lasting(broker, root, version) as core:
            core.pump(lambda: core.times_connected and core.arrived)
            assert core.of(BrokerConnected)[0].session_present is True
            (message,) = core.arrived
            assert (message.payload, message.duplicate) == (b"after a goodbye", False)
            core.acknowledge(message.ack)
            core.publish(f"{root}/barrier", token=1)
            core.pump(lambda: core.confirmed)


def test_without_a_session_what_is_sent_meanwhile_is_nobodys(broker: Broker, root: str) -> None:
    with Consumer(broker, f"{root}/none") as consumer:
        for _ in range(2):
            with Core(broker, name=root, subscriptions=[f"{root}/req/#"]) as core:
                core.connect()
                consumer.publish(f"{root}/req/live", b"x")
                core.pump(lambda: core.arrived)
                assert [m.topic for m in core.arrived] == [f"{root}/req/live"]
                assert core.of(BrokerConnected)[0].session_present is False
            consumer.publish(f"{root}/req/meanwhile", b"x")


@both_versions
def test_what_was_not_acknowledged_comes_again_under_its_packet_identifier(
    broker: Broker, root: str, version: object
) -> None:
    with lasting(broker, root, version) as core, Consumer(broker, f"{root}/none") as consumer:
        core.connect()
        for payload in (b"one", b"two", b"three"):
            consumer.publish(f"{root}/req/{payload.decode()}", payload)
        core.pump(lambda: len(core.arrived) == 3)
        first = list(core.arrived)
        core.acknowledge(first[1].ack)
        core.publish(f"{root}/barrier", token=1)  # the broker has that PUBACK when it confirms this
        core.pump(lambda: core.confirmed)
        break_connection(core)
        core.pump(lambda: len(core.arrived) == 5)
        again = core.arrived[3:]
        assert [seen(m) for m in again] == [(m.payload, m.packet_id, True) for m in (first[0], first[2])]
        # The old acknowledgements name the same packet identifiers, and yet they are of a connection that is over.
        for message in (first[0], first[2]):
            core.acknowledge(message.ack)
        core.publish(f"{root}/barrier", token=2)
        core.pump(lambda: core.confirmed == [1, 2])
        break_connection(core)
        core.pump(lambda: len(core.arrived) == 7)
        for message in core.arrived[5:]:
            core.acknowledge(message.ack)
        core.publish(f"{root}/barrier", token=3)
        core.pump(lambda: core.confirmed == [1, 2, 3])
        break_connection(core)
        consumer.publish(f"{root}/req/four", b"four")
        core.pump(lambda: len(core.arrived) == 8)
        assert core.arrived[7].payload == b"four", "nothing came again that was acknowledged"


@both_versions
def test_unacknowledged_messages_survive_a_killed_broker_that_keeps_its_sessions(
    start_broker: StartBroker, version: object, caplog: pytest.LogCaptureFixture
) -> None:
    private = start_broker(persistence=True)
    with lasting(private, "edged-test", version) as core:
        core.connect()
        with Consumer(private, "none") as consumer:
            for n in range(5):
                consumer.publish(f"edged-test/req/{n}", b"%d" % n)
        core.pump(lambda: len(core.arrived) == 5)
        first = list(core.arrived)
        core.acknowledge(first[0].ack)
        core.publish("barrier", token=1)
        core.pump(lambda: core.confirmed)
        saved(private)
        private.kill()
        core.pump(lambda: not core.connection.connected)
        private.start()
        core.pump(lambda: core.times_connected == 2 and len(core.arrived) >= 9)
        assert core.of(BrokerConnected)[1].session_present is True
        assert [seen(m) for m in core.arrived[5:]] == [(m.payload, m.packet_id, True) for m in first[1:]]
        assert "lost the session" not in caplog.text


def saved(broker: LocalBroker) -> None:
    """Wait until the broker has written all that it has: with a publish of its own that changes what is to be kept."""
    before = broker.log_file.read_text().count("Saving in-memory database")
    with Consumer(broker, "saved") as consumer:
        consumer.publish("saved", b"x", retain=True)
        for n in range(1000):
            consumer.publish("saved", b"%d" % n, retain=True)
            if broker.log_file.read_text().count("Saving in-memory database") > before + 1:
                return
    raise AssertionError("the broker does not save")


@both_versions
def test_a_lost_session_is_told_once_and_only_where_there_had_been_one(
    private_broker: LocalBroker, version: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="edged.mqtt")
    with lasting(private_broker, "edged-test", version) as core:
        core.connect()
        break_connection(core)
        assert caplog.records == [], "the first has none, the second has it"
        private_broker.kill()  # without persistence
        core.pump(lambda: not core.connection.connected)
        private_broker.start()
        core.pump(lambda: core.times_connected == 3)
        (line,) = [record.getMessage() for record in caplog.records]
        assert f"the broker at 127.0.0.1:{private_broker.port} has lost the session of 'edged-test'" in line
        break_connection(core)
        assert len(caplog.records) == 1
        assert [event.session_present for event in core.of(BrokerConnected)] == [False, True, False, True]


def test_who_asks_for_no_session_misses_none(private_broker: LocalBroker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="edged.mqtt")
    with Core(private_broker, subscriptions=["req"]) as core:
        core.connect()
        break_connection(core)
        assert caplog.records == []
