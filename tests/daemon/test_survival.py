"""Engines and brokers that die: what runs ends with an error, and the node serves on."""

from __future__ import annotations

import os
import signal

import pytest

from tests.brokers import Broker, LocalBroker
from tests.fixtures import StartNode, StartScripted
from tests.listener import Listener
from tests.nodes import ENDLESS, wait_until

pytestmark = pytest.mark.model


def test_kill_9_of_the_engine(broker: Broker, start_node: StartNode) -> None:
    node = start_node(broker)
    with Listener(broker.host, broker.port, f"{node.base}/#") as listener:
        old = node.engine_pid()
        for i in range(4):
            listener.publish(f"{node.base}/req/k{i}", ENDLESS)
        for i in range(4):
            listener.chunk(f"k{i}")
        os.kill(old, signal.SIGKILL)
        finals = [listener.final(f"k{i}") for i in range(4)]
        listener.publish(f"{node.base}/req/next", {"prompt": "Say hi.", "max_tokens": 5})
        after = listener.final("next")

    assert [f["error"]["code"] for f in finals] == ["internal"] * 4
    assert all(f["error"]["retryable"] and f["text"] for f in finals)
    for i, final in enumerate(finals):
        messages = listener.stream(f"k{i}")
        assert [m["seq"] for m in messages] == list(range(len(messages)))
        assert "".join(m["text"] for m in messages if m["type"] == "chunk") == final["text"]
    assert after["finish_reason"] in ("stop", "length")
    assert node.engine_pid() != old
    assert "SIGKILL" in node.log()


def test_kill_9_of_the_broker_and_its_return(private_broker: LocalBroker, start_node: StartNode) -> None:
    node = start_node(private_broker)
    private_broker.kill()
    wait_until(lambda: "not connected" in node.log(), "the daemon notices")
    private_broker.start()
    node.wait_ready()

    with Listener(private_broker.host, private_broker.port, f"{node.base}/#") as listener:
        listener.publish(f"{node.base}/req/back", {"prompt": "Say hi.", "max_tokens": 5})
        assert listener.final("back")["text"]


def test_an_answer_that_the_broker_missed_is_delivered_when_it_returns(
    private_broker: LocalBroker, start_scripted: StartScripted
) -> None:
    """The broker lost its memory; what it had not confirmed before is published again, the rest for the first time."""
    node = start_scripted(private_broker)
    with Listener(private_broker.host, private_broker.port) as publisher:
        publisher.publish(f"{node.base}/req/away", "hello")
        [uid] = node.engine.wait_for(1)
    private_broker.kill()
    for i in range(100):
        node.engine.say(uid, f"{i} ")
    private_broker.start()
    with Listener(private_broker.host, private_broker.port, f"{node.base}/reply/#") as listener:
        node.engine.finish(uid)
        final = listener.final("away")

    assert final["text"] == "".join(f"{i} " for i in range(100))
    # Back-pressure made the chunks grow: far fewer messages than tokens.
    assert final["seq"] < 40


def test_sigterm_drains(broker: Broker, start_node: StartNode) -> None:
    """What runs may finish; what takes longer than the grace period is cancelled; the card says offline."""
    node = start_node(broker, EDGED_SERVICE__GRACE_S="1", EDGED_MODELS='[{"path":"starter","parallel":1,"threads":1}]')
    with Listener(broker.host, broker.port, f"{node.base}/#") as listener:
        listener.publish(f"{node.base}/req/runs", ENDLESS)
        listener.publish(f"{node.base}/req/waits", ENDLESS)
        listener.chunk("runs")
        code = node.terminate()
        runs, waits = listener.final("runs"), listener.final("waits")
        states = [m.json()["state"] for m in listener.received if m.topic.endswith("/status")]

    assert code == 0
    assert runs["finish_reason"] == "cancelled"
    assert waits["error"]["code"] == "draining"
    assert states[-2:] == ["draining", "offline"]


def test_kill_9_of_the_daemon_takes_the_engine_with_it_and_publishes_the_will(
    broker: Broker, start_node: StartNode
) -> None:
    node = start_node(broker)
    engine = node.engine_pid()
    with Listener(broker.host, broker.port, f"{node.base}/status") as listener:
        boot = listener.wait(lambda m: m.json()["state"] == "online").json()["boot"]
        node.kill()
        lost = listener.wait(lambda m: m.json()["state"] == "lost").json()

    assert lost["boot"] == boot
    wait_until(lambda: not os.path.exists(f"/proc/{engine}"), "the engine ends")  # noqa: PTH110


def test_boot_rises_with_every_start(broker: Broker, start_node: StartNode) -> None:
    node = start_node(broker)
    boots = []
    for _ in range(2):
        with Listener(broker.host, broker.port, f"{node.base}/status") as listener:
            boots.append(listener.wait(lambda m: m.json()["state"] == "online").json()["boot"])
        node.terminate()
        node.start()
        node.wait_ready()
    with Listener(broker.host, broker.port, f"{node.base}/status") as listener:
        boots.append(listener.wait(lambda m: m.json()["state"] == "online").json()["boot"])

    assert boots == sorted(set(boots))
