"""The connection against a real broker."""

from __future__ import annotations

import json
import re
from uuid import uuid4

import pytest

from edged.core.events import MessageArrived, Properties, Publish, Published
from tests.brokers import Broker, LocalBroker
from tests.conftest import StartBroker
from tests.mqtt.harness import Consumer, Core

both_versions = pytest.mark.parametrize("version", [5, "3.1.1"])


@pytest.fixture
def root() -> str:
    """Topics that no other test on the shared broker uses."""
    return f"mqtt-{uuid4().hex[:8]}"


@both_versions
def test_a_request_comes_in_and_a_reply_goes_out(broker: Broker, root: str, version: object) -> None:
    with (
        Core(broker, name=root, subscriptions=[f"{root}/req/#"], version=version) as core,
        Consumer(broker, f"{root}/reply/#") as consumer,
    ):
        core.connect()
        consumer.publish(f"{root}/req/k1", "grüß dich".encode())
        core.pump(lambda: core.arrived)
        (message,) = core.arrived
        assert message == MessageArrived(f"{root}/req/k1", "grüß dich".encode(), qos=1, ack=message.ack, packet_id=1)
        assert message.ack is not None
        core.acknowledge(message.ack)
        core.publish(f"{root}/reply/k1", b'{"seq":0}', token="seq 0")
        core.pump(lambda: core.confirmed == ["seq 0"])
        reply = consumer.next()
        assert (reply.topic, reply.payload, reply.qos, reply.retain) == (f"{root}/reply/k1", b'{"seq":0}', 1, False)


def test_properties_come_in_and_go_out(broker: Broker, root: str) -> None:
    with (
        Core(broker, name=root, subscriptions=[f"{root}/req/#"]) as core,
        Consumer(broker, f"{root}/reply/#") as consumer,
    ):
        core.connect()
        consumer.publish(
            f"{root}/req", b"x", ResponseTopic=f"{root}/reply/me", CorrelationData=b"\x00\xff", MessageExpiryInterval=90
        )
        core.pump(lambda: core.arrived)
        (message,) = core.arrived
        assert (message.response_topic, message.correlation) == (f"{root}/reply/me", b"\x00\xff")
        assert message.expiry_s is not None
        assert 80 < message.expiry_s <= 90
        core.publish(f"{root}/reply/me", b"{}", properties=Properties(expiry_s=600, correlation=b"\x00\xff"))
        core.publish(f"{root}/reply/me", b"{}", properties=Properties())
        full, bare = consumer.next().properties, consumer.next().properties
        assert full is not None
        assert bare is not None
        said = full.json()  # type: ignore[no-untyped-call]  # paho's properties have no types
        assert 590 < said.pop("MessageExpiryInterval") <= 600
        assert said == {"ContentType": "application/json", "PayloadFormatIndicator": 1, "CorrelationData": "00ff"}
        assert bare.json() == {  # type: ignore[no-untyped-call]  # paho's properties have no types
            "ContentType": "application/json",
            "PayloadFormatIndicator": 1,
        }


def test_in_3_1_1_properties_are_left_out(broker: Broker, root: str) -> None:
    with (
        Core(broker, name=root, subscriptions=[f"{root}/req"], version="3.1.1") as core,
        Consumer(broker, f"{root}/reply") as consumer,
    ):
        core.connect()
        consumer.publish(f"{root}/req", b"x", ResponseTopic="t", CorrelationData=b"c", MessageExpiryInterval=90)
        core.publish(f"{root}/reply", b"{}", properties=Properties(expiry_s=600, correlation=b"c"))
        core.pump(lambda: core.arrived)
        assert core.arrived[0] == MessageArrived(f"{root}/req", b"x", ack=core.arrived[0].ack, packet_id=1)
        properties = consumer.next().properties
        assert properties is None or properties.json() == {}  # type: ignore[no-untyped-call]  # paho's have no types


@both_versions
def test_a_retained_request_is_seen_to_be_retained(broker: Broker, root: str, version: object) -> None:
    """A broker that restarts must not replay prompts: the core passes these over, and has to know them."""
    with Consumer(broker, f"{root}/none") as consumer:
        consumer.publish(f"{root}/req/old", b"stored", retain=True)
        try:
            with Core(broker, name=root, subscriptions=[f"{root}/req/#"], version=version) as core:
                core.pump(lambda: core.arrived)
                consumer.publish(f"{root}/req/new", b"live")
                core.pump(lambda: len(core.arrived) == 2)
                assert [(m.topic, m.retain) for m in core.arrived] == [
                    (f"{root}/req/old", True),
                    (f"{root}/req/new", False),
                ]
                if version == 5:  # there the flag of a live message is kept as well
                    consumer.publish(f"{root}/req/old", b"again", retain=True)
                    core.pump(lambda: len(core.arrived) == 3)
                    assert core.arrived[2].retain
        finally:
            consumer.publish(f"{root}/req/old", b"", retain=True)


def test_what_is_not_acknowledged_holds_a_place_and_comes_no_further(broker: Broker, root: str) -> None:
    with (
        Core(broker, name=root, subscriptions=[f"{root}/req/#"], receive_maximum=2) as core,
        Consumer(broker, f"{root}/none") as consumer,
    ):
        core.connect()
        for n in range(5):
            consumer.publish(f"{root}/req/{n}", b"x")
        core.publish(f"{root}/barrier", token=1)  # the broker is past all five when it confirms this
        core.pump(lambda: core.confirmed)
        core.pump(lambda: len(core.arrived) >= 2)
        assert [m.topic for m in core.arrived] == [f"{root}/req/0", f"{root}/req/1"]
        core.acknowledge(core.arrived[0].ack)
        core.pump(lambda: len(core.arrived) == 3)
        for message in core.arrived[1:]:
            core.acknowledge(message.ack)
        core.pump(lambda: len(core.arrived) == 5)
        assert [m.topic for m in core.arrived] == [f"{root}/req/{n}" for n in range(5)]


def test_an_oversize_message_is_kept_away_and_costs_neither_the_connection_nor_the_next_one(
    broker: Broker, root: str
) -> None:
    with (
        Core(broker, name=root, subscriptions=[f"{root}/req/#"], maximum_packet=10_000) as core,
        Consumer(broker, f"{root}/none") as consumer,
    ):
        core.connect()
        for n in range(10):
            consumer.publish(f"{root}/req/large", b"x" * 20_000, retain=n == 0)
            consumer.publish(f"{root}/req/large", b"x" * 20_000, qos=0)
        consumer.publish(f"{root}/req/small", b"x" * 9_000)
        core.pump(lambda: core.arrived)
        assert [m.topic for m in core.arrived] == [f"{root}/req/small"]
        assert core.connection.connections == 1
        with Core(broker, name=f"{root}-2", subscriptions=[f"{root}/req/#"], maximum_packet=10_000) as later:
            later.connect()  # the retained one does not keep it from connecting, or make it do so over and over
            consumer.publish(f"{root}/req/small", b"y")
            later.pump(lambda: later.arrived)
            assert later.arrived[0].payload == b"y"
            assert later.connection.connections == 1
        consumer.publish(f"{root}/req/large", b"", retain=True)


def test_the_will_is_published_when_the_connection_breaks_and_not_at_a_goodbye(broker: Broker, root: str) -> None:
    will = Publish(f"{root}/status", b'{"state":"lost"}', retain=True, properties=Properties(expiry_s=5))
    with Consumer(broker, f"{root}/status") as consumer:
        with Core(broker, name=root, will=will) as core:
            core.connect()
            core.publish(f"{root}/status", b'{"state":"online"}', retain=True, token=1)
            core.pump(lambda: core.confirmed)
        assert json.loads(consumer.next().payload) == {"state": "online"}
        with Core(broker, name=root, will=will) as core:
            core.connect()
            sock = core.connection._link._client.socket()  # type: ignore[union-attr]  # it is connected
            assert sock is not None
            sock.shutdown(2)  # type: ignore[union-attr]  # a plain TCP socket
            lost = consumer.next()
            assert json.loads(lost.payload) == {"state": "lost"}
            assert lost.retain
            assert lost.properties is not None
            assert lost.properties.json() == {  # type: ignore[no-untyped-call]  # paho's properties have no types
                "ContentType": "application/json",
                "PayloadFormatIndicator": 1,
                "MessageExpiryInterval": 5,
            }
            core.pump(lambda: core.times_connected == 2)
            assert "was closed" in core.reasons[0]


def received(broker: LocalBroker, runs: int) -> list[list[int]]:
    """The numbers of the `reply/N` that each run of the broker has received from the connection, in order."""
    log = re.split(r"mosquitto version \S+ starting", broker.log_file.read_text())[-runs:]
    return [[int(n) for n in re.findall(r"Received PUBLISH from edged-test \(.*'reply/(\d+)'", part)] for part in log]


@both_versions
def test_a_killed_broker_is_found_again_and_nothing_is_lost_or_reordered(
    private_broker: LocalBroker, version: object
) -> None:
    total = 300
    with Core(private_broker, subscriptions=["req/#"], version=version) as core:
        core.connect()
        for n in range(total):
            core.publish(f"reply/{n}", token=n)
            if n in (100, 200):
                core.pump(lambda enough=n - 15: len(core.confirmed) > enough)  # type: ignore[misc]  # mypy wants a type
                private_broker.kill()
                private_broker.start()
        core.pump(lambda: len(core.confirmed) == total)
        assert core.confirmed == list(range(total))
        assert core.connection.connections == 3
        runs = received(private_broker, 3)
        assert all(run == sorted(set(run)) for run in runs)
        assert list(dict.fromkeys(n for run in runs for n in run)) == list(range(total))
        with Consumer(private_broker, "none") as consumer:
            consumer.publish("req/after", b"x")
            core.pump(lambda: core.arrived)


def test_a_broker_that_hangs_is_given_up_and_tried_until_it_answers(private_broker: LocalBroker) -> None:
    """Its kernel still accepts connections, so nothing but silence gives it away."""
    with Core(private_broker, keepalive_s=1, connect_timeout_s=0.3) as core:
        core.connect()
        private_broker.pause()
        core.publish("t", token=1)
        core.pump(lambda: len(core.reasons) == 3)
        assert "was silent for 1.5 s" in core.reasons[0]
        assert "accepted the connection and did not answer for 0.3 s" in core.reasons[1]
        assert core.connection.alive
        assert core.connection.backlog == 1
        private_broker.resume()
        core.pump(lambda: core.confirmed == [1])


def test_an_idle_connection_stays_up_through_its_keepalives(broker: Broker, root: str) -> None:
    with Core(broker, name=root, keepalive_s=1) as core:
        core.connect()
        core.linger(2.3)
        assert core.connection.connections == 1
        assert core.connection.alive


def test_the_brokers_largest_packet_is_respected(start_broker: StartBroker) -> None:
    with Core(start_broker(config=["max_packet_size 3000"])) as core:
        core.connect()
        core.publish("t", b"x" * 5000, token="too large")
        core.publish("t", b"x" * 2000, token="fits")
        core.pump(lambda: len(core.confirmed) == 2)
        assert [(event.token, event.reason_code) for event in core.of(Published)] == [
            ("too large", 0x95),
            ("fits", 0x10),  # nobody is subscribed, which is no refusal
        ]
        assert core.connection.connections == 1


def test_a_broker_that_keeps_nothing_is_told_as_the_reason(start_broker: StartBroker) -> None:
    broker = start_broker(config=["retain_available false"])
    with Core(broker, will=Publish("status", b"{}", retain=True)) as core:
        core.pump(lambda: core.reasons)
        assert "Retain not supported (0x9A); the broker keeps no retained messages" in core.reasons[0]
