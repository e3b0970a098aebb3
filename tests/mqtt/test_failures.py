"""What goes wrong between the connection and a broker is told in a sentence, and tried again."""

from __future__ import annotations

import random

import pytest

from tests.mqtt.harness import Core
from tests.mqtt.scripted import ScriptedBroker, Session, polite


@pytest.mark.parametrize("version", [5, "3.1.1"])
def test_a_refused_subscription_is_named_and_tried_again_later(version: object) -> None:
    def refusing(session: Session) -> None:
        session.accept()
        subscribe = session.read_subscribe()
        session.send(session.codec.make_suback(subscribe.mid, [1, 0x87 if session.codec.five else 0x80]))
        assert session.read_publish() is None

    with (
        ScriptedBroker(refusing, refusing, polite) as broker,
        Core(broker, version=version, subscriptions=["granted/#", "secret/#"], username="pi") as core,
    ):
        core.publish("t", token=1)
        core.pump(lambda: core.confirmed == [1])
        assert broker.goodbyes == [1, 2]
        assert len(core.reasons) == 2
        why = "Not authorized (0x87)" if version == 5 else "Unspecified error (0x80)"
        assert f"refused the subscription to 'secret/#' ({why})" in core.reasons[0]
        assert "user 'pi'" in core.reasons[0]
        assert broker.topics == ["t"]


@pytest.mark.parametrize("subscriptions", [[], ["a"]], ids=["no CONNACK", "no SUBACK"])
def test_a_broker_that_accepts_and_does_not_answer_is_given_up_and_tried_again(subscriptions: list[str]) -> None:
    def deaf(session: Session) -> None:
        if subscriptions:
            session.accept()
        while True:
            session.read()

    with (
        ScriptedBroker(deaf, deaf, polite) as broker,
        Core(broker, subscriptions=subscriptions, connect_timeout_s=0.1) as core,
    ):
        core.connect()
        assert len(core.reasons) == 2
        assert "accepted the connection and did not answer for 0.1 s; next attempt in" in core.reasons[0]


@pytest.mark.parametrize("before", ["CONNACK", "ready"])
def test_garbage_ends_the_connection_and_nothing_else(before: str) -> None:
    dice = random.Random(before)

    def garbling(session: Session) -> None:
        if before == "CONNACK":
            session.read_connect()
        else:
            session.accept()
        session.send(dice.randbytes(64))

    with ScriptedBroker(*[garbling] * 20, polite) as broker, Core(broker, backoff_max_s=0.02) as core:
        core.publish("t", token=1)
        core.pump(lambda: core.confirmed and len(core.reasons) == 20)
        assert core.connection.alive
        assert core.connection.connected


#: Packets that are malformed in ways that MQTT libraries stumble over.
MALFORMED = {
    "CONNACK without a body": b"\x20\x00",
    "SUBACK for nothing": b"\x90\x02\x00\x09",
    "PUBLISH shorter than its topic": b"\x30\x03\x00\xff\x41",
    "PUBLISH with QoS 3": b"\x36\x05\x00\x01\x41\x00\x01",
    "PUBLISH with a broken property": b"\x30\x06\x00\x01\x41\x02\x7f\x00",
    "PUBACK without an identifier": b"\x40\x00",
    "DISCONNECT with an unknown reason": b"\xe0\x01\x7f",
    "length of five bytes": b"\x30\xff\xff\xff\xff\x01",
    "AUTH out of the blue": b"\xf0\x00",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_packet_costs_at_most_the_connection(name: str) -> None:
    def script(session: Session) -> None:
        session.accept()
        session.read_publish()
        session.send(MALFORMED[name])
        session.serve()

    with ScriptedBroker(script, polite) as broker, Core(broker) as core:
        core.connect()
        core.publish("t", token=1)
        broker.wait(lambda b: len(b.published) == 1)
        core.publish("u", token=2)
        if name != "SUBACK for nothing":
            core.pump(lambda: core.times_connected == 2)
            assert "127.0.0.1" in core.reasons[0]
            core.pump(lambda: len(core.confirmed) == 2)


def test_the_brokers_own_words_are_passed_on() -> None:
    def script(session: Session) -> None:
        session.accept()
        session.send(b"\xe0\x0a\x8e\x08\x1f\x00\x05hello")  # DISCONNECT, session taken over, a Reason String

    with ScriptedBroker(script, polite) as broker, Core(broker) as core:
        core.pump(lambda: core.times_connected == 2)
        assert "Session taken over (0x8E); hello; another client has connected under the same" in core.reasons[0]


@pytest.mark.parametrize(
    ("version", "code", "words"),
    [
        (5, 0x87, "Not authorized (0x87); check mqtt.username"),
        (5, 0x86, "Bad user name or password (0x86); check mqtt.username"),
        (5, 0x84, "Unsupported protocol version (0x84); the broker does not speak"),
        (5, 0x88, "Server unavailable (0x88)"),
        ("3.1.1", 4, "Bad user name or password (0x86); check mqtt.username"),
        ("3.1.1", 5, "Not authorized (0x87); check mqtt.username"),
        ("3.1.1", 1, "check mqtt.port, and mqtt.version, which is 3.1.1"),
    ],
)
def test_a_refused_connection_says_why_and_is_tried_again(version: object, code: int, words: str) -> None:
    with ScriptedBroker(lambda s: s.accept(code), polite) as broker, Core(broker, version=version) as core:
        core.connect()
        (reason,) = core.reasons
        assert words in reason


def test_nobody_listening_is_a_reason_and_not_an_end() -> None:
    with ScriptedBroker(polite) as broker:
        pass
    with Core(broker) as core:
        core.pump(lambda: len(core.reasons) == 3)
        assert f"no connection to the broker at 127.0.0.1:{broker.port}: Connection refused" in core.reasons[0]
        assert core.connection.alive


def test_an_unknown_host_is_a_reason_and_not_an_end() -> None:
    class Nowhere:
        host, port = "a.invalid-label-" + "x" * 70, 1883

    with Core(Nowhere()) as core:
        core.pump(lambda: core.reasons)
        assert "no connection to the broker at a.invalid-label-" in core.reasons[0]
        assert core.connection.alive
