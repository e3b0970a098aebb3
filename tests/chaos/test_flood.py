"""Floods of requests: every one gets a final, and the daemon's memory stays bounded."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from paho.mqtt import client as paho

from tests.chaos.stage import BROKER_CONFIG, resident_kib
from tests.conftest import StartBroker
from tests.fixtures import StartNode
from tests.listener import Listener
from tests.nodes import wait_until

pytestmark = pytest.mark.model
COUNT = 10_000
#: What the daemon's own process may grow by, KiB. All requests together are 42 MB: they would not fit.
MOST_KIB = 32 * 1024
#: Requests of 100 to 250 KB: so many at once, so often. What the daemon may keep of them, KiB; they are 70 MB.
LARGE, TIMES, KEPT_KIB = 100, 4, 12 * 1024


class Finals:
    """Reads on where it has read to: 10,000 messages are not to be parsed again and again."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._read = 0
        self.ends: Counter[str] = Counter()
        self.by_id: Counter[str] = Counter()

    def complete(self) -> bool:
        received = self._listener.received
        while self._read < len(received):
            message = received[self._read].json()
            self._read += 1
            if message["type"] == "final":
                self.by_id[message["id"]] += 1
                self.ends[message["error"]["code"] if "error" in message else message["finish_reason"]] += 1
        return len(self.by_id) >= COUNT


def test_ten_thousand_requests_at_once(start_broker: StartBroker, start_node: StartNode) -> None:
    broker = start_broker(config=BROKER_CONFIG)
    node = start_node(broker)
    body = json.dumps({"prompt": "1, 2,", "raw": True, "max_tokens": 1, "stop": ["x" * 256] * 16})
    before = resident_kib(node.pid)
    # In MQTT 3.1.1 the broker sets no limit to what is on its way.
    publisher = Listener(broker.host, broker.port, version=paho.MQTTv311)
    publisher._client.max_inflight_messages_set(COUNT)
    with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener, publisher:
        sent = [publisher._client.publish(f"{node.base}/ask/f{i}", body, qos=1) for i in range(COUNT)]
        finals = Finals(listener)
        wait_until(finals.complete, "every request has a final", 120)
        assert all(one.is_published() for one in sent)

    peak = resident_kib(node.pid, "VmHWM")
    assert set(finals.ends) <= {"stop", "length", "overloaded"}, finals.ends
    assert finals.ends["overloaded"] > COUNT // 2
    assert finals.ends["length"] + finals.ends["stop"] >= 100
    # A message may come twice, but nothing has failed here that would be a reason.
    assert set(finals.by_id.values()) == {1}
    assert peak - before < MOST_KIB, f"{before} KiB before, {peak} KiB at most"


def test_of_large_requests_little_memory_is_kept(start_broker: StartBroker, start_node: StartNode) -> None:
    broker = start_broker(config=BROKER_CONFIG)
    node = start_node(broker)
    with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener:
        listener.publish(f"{node.base}/ask/first", "hello")
        listener.final("first")
        before = resident_kib(node.pid)
        for turn in range(TIMES):
            for i in range(LARGE):
                listener.publish(f"{node.base}/req/r{turn}-{i}", "word " * (20_000 + 300 * i))
            for i in range(LARGE):
                assert listener.final(f"r{turn}-{i}")["error"]["code"] == "context_overflow"
        after = resident_kib(node.pid)
    assert after - before < KEPT_KIB, f"{before} KiB before, {after} KiB after"
