"""A flood is bounded, and every request of it is answered or refused."""

from __future__ import annotations

import pytest

from edged.engine.protocol import Generate
from tests.brokers import Broker
from tests.fixtures import StartScripted
from tests.listener import Listener
from tests.nodes import ScriptedNode, wait_until

COUNT = 2000


def echo(_order: Generate) -> list[str]:
    return ["fine"]


def answered(node: ScriptedNode, publisher: Listener, listener: Listener) -> bool:
    """One more request. Mosquitto itself drops what its own queue for the node has no room for, whatever the QoS."""
    publisher.publish(f"{node.base}/ask/last", "hello")
    try:
        listener.wait(lambda m: m.topic.endswith("/last") and b'"text":"fine"' in m.payload, 1)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("qos", [0, 1])
def test_a_flood_is_answered_and_the_inbox_stays_bounded(
    broker: Broker, start_scripted: StartScripted, monkeypatch: pytest.MonkeyPatch, qos: int
) -> None:
    monkeypatch.setattr("edged.inbox._MOST_BYTES", 20_000)  # so that the bound is met
    node = start_scripted(broker, answer=echo)
    with Listener(broker.host, broker.port) as publisher:
        for i in range(COUNT):
            publisher.publish(f"{node.base}/ask/f{i}", "x" * 500, qos=qos)
        with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener:
            wait_until(lambda: answered(node, publisher, listener), "the node serves again", 30)

    assert node.daemon._inbox.requests.posted == node.daemon._inbox.requests.handled > 0


def test_one_message_over_the_inboxs_bound_is_not_stuck(
    broker: Broker, start_scripted: StartScripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.inbox._MOST_BYTES", 100)
    node = start_scripted(broker, answer=echo)
    with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener:
        for name in ("a", "b"):
            listener.publish(f"{node.base}/ask/{name}", "x" * 5000)
            assert listener.final(name)["text"] == "fine"


def test_stopping_in_the_middle_of_a_flood(
    broker: Broker, start_scripted: StartScripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.inbox._MOST_BYTES", 1)
    node = start_scripted(broker, answer=echo)
    with Listener(broker.host, broker.port) as publisher:
        for i in range(500):
            publisher.publish(f"{node.base}/ask/f{i}", "hello", qos=0)
    wait_until(lambda: node.daemon._inbox.requests.handled > 0, "the flood has begun")

    node.stop()


def test_a_cancel_gets_through_while_requests_wait_at_the_broker(
    broker: Broker, start_scripted: StartScripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is acknowledged, and so the window is full, and the rest of them queues up in the broker."""
    node = start_scripted(broker, mqtt={"version": "3.1.1"}, limits={"max_queue": 200})
    monkeypatch.setattr(node.daemon._journal, "sync", lambda _number: None)  # a disk that takes for ever
    with Listener(broker.host, broker.port) as publisher:
        for i in range(100):
            publisher.publish(f"{node.base}/req/r{i}", "hello")
        [uid, *_] = node.engine.wait_for(1)
        publisher.publish(f"{node.base}/ctl/r0", "cancel")
        wait_until(lambda: uid in node.engine.cancelled, "the cancel takes effect")


def test_a_flood_of_control_messages_stays_bounded(
    broker: Broker, start_scripted: StartScripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.inbox._MOST_BYTES", 20_000)
    node = start_scripted(broker, answer=echo)
    with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener:
        for i in range(300):
            listener.publish(f"{node.base}/ctl/c{i}", "x" * 5000, qos=0)
        listener.publish(f"{node.base}/ask/last", "hello")
        assert listener.final("last")["text"] == "fine"
    controls = node.daemon._inbox.controls
    wait_until(lambda: controls.handled == controls.posted > 0, "all of it is handled")
