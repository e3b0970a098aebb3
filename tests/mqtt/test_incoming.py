"""What comes in, and when it is acknowledged."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from edged.core.events import MessageArrived, Published
from edged.mqtt.happenings import Confirmed
from tests.mqtt.harness import Core
from tests.mqtt.scripted import PATIENCE_S, ScriptedBroker, Session, polite


def test_a_message_is_acknowledged_when_the_core_says_so_and_not_before() -> None:
    def script(session: Session) -> None:
        session.accept()
        for mid in (7, 8):
            session.send(session.codec.make_publish(b"req", b"%d" % mid, qos=1, mid=mid))
        session.serve()

    with ScriptedBroker(script) as broker, Core(broker) as core:
        core.pump(lambda: len(core.arrived) == 2)
        core.publish("barrier", token=1)
        core.pump(lambda: core.confirmed)
        assert broker.pubacks == []
        for message in reversed(core.arrived):
            assert message.ack is not None
            core.acknowledge(message.ack)
        broker.wait(lambda b: b.pubacks == [(1, 8), (1, 7)])


def test_an_acknowledgement_of_an_older_connection_is_dropped() -> None:
    """The new connection may use the same packet identifier for another message."""
    drop = threading.Event()

    def first(session: Session) -> None:
        session.accept()
        session.send(session.codec.make_publish(b"req", b"old", qos=1, mid=1))
        drop.wait(PATIENCE_S)

    def second(session: Session) -> None:
        session.accept()
        session.send(session.codec.make_publish(b"req", b"new", qos=1, mid=1))
        session.serve()

    with ScriptedBroker(first, second) as broker, Core(broker) as core:
        core.pump(lambda: len(core.arrived) == 1)
        drop.set()
        core.pump(lambda: len(core.arrived) == 2)
        old, new = core.arrived
        core.acknowledge(old.ack)
        core.publish("barrier", token=1)
        core.pump(lambda: core.confirmed)
        assert broker.pubacks == []
        core.acknowledge(new.ack)
        broker.wait(lambda b: b.pubacks == [(2, 1)])
        assert old.ack != new.ack


def test_a_confirmation_of_an_older_connection_confirms_nothing() -> None:
    """Both connections begin to count packet identifiers at 1."""

    def taking(session: Session) -> None:
        session.accept()
        session.read_publish()

    def withholding(session: Session) -> None:
        session.accept()
        while session.read_publish() is not None:
            pass

    with ScriptedBroker(taking, withholding) as broker, Core(broker) as core:
        core.publish("t", token=1)
        core.pump(lambda: core.times_connected == 2)
        assert core.connection.handle(Confirmed(1, ((1, 0),))) == []
        assert core.connection.backlog == 1
        assert core.connection.handle(Confirmed(2, ((1, 0),))) == [Published(1)]
        assert core.connection.backlog == 0


def test_what_is_no_acknowledgement_is_refused() -> None:
    with ScriptedBroker(polite) as broker, Core(broker) as core, pytest.raises(TypeError, match="no acknowledgement"):
        core.acknowledge(1)


def test_a_topic_that_is_not_utf8_is_passed_over_and_does_not_hold_the_window() -> None:
    def script(session: Session) -> None:
        session.accept()
        session.send(session.codec.make_publish(b"req/\xff\xfe", b"bad", qos=1, mid=5))
        session.send(session.codec.make_publish(b"req/x", b"good"))
        session.serve()

    with ScriptedBroker(script) as broker, Core(broker) as core:
        core.pump(lambda: core.arrived)
        assert core.arrived == [MessageArrived("req/x", b"good", qos=0)]
        broker.wait(lambda b: b.pubacks == [(1, 5)])
        assert core.connection.connections == 1


def test_a_callback_that_raises_does_not_end_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """An inbox that fails is the daemon's bug; the thread that serves the socket has to survive it."""

    def script(session: Session) -> None:
        session.accept()
        session.send(session.codec.make_publish(b"req/poison", b"1", qos=1, mid=1))
        session.send(session.codec.make_publish(b"req/good", b"2", qos=1, mid=2))
        session.serve()

    class Full(Exception):  # noqa: N818 - it stands for queue.Full
        pass

    class Fussy(Core):
        def post(self, happening: Any) -> None:
            if b"poison" in repr(happening).encode():
                raise Full
            self.inbox.put(happening)

    with ScriptedBroker(script) as broker:
        core = Fussy(broker)
        core.connection._post = core.post
        with core:
            core.pump(lambda: core.arrived)
            assert [message.topic for message in core.arrived] == ["req/good"]
            core.publish("t", token=1)
            core.pump(lambda: core.confirmed)
            assert core.connection.connections == 1
            assert "an MQTT callback failed" in caplog.text
