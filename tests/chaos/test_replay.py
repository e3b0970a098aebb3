"""A consumer that was away gets all of it afterwards."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from edged.wire.topics import Kind
from tests.brokers import Broker
from tests.chaos.consumer import Consumer
from tests.chaos.exchange import Exchange
from tests.conftest import StartBroker
from tests.fixtures import StartNode
from tests.listener import Listener
from tests.nodes import ENDLESS, NodeProcess, wait_until

pytestmark = pytest.mark.model


def test_a_consumer_that_was_offline_for_a_whole_answer_gets_it_by_replay(broker: Broker, node: NodeProcess) -> None:
    with Listener(broker.host, broker.port, f"{node.base}/reply/away") as witness:
        witness.publish(f"{node.base}/req/away", {**ENDLESS, "max_tokens": 20})
        final = witness.final("away")
    said = [m.payload for m in witness.received]

    with Listener(broker.host, broker.port, f"{node.base}/reply/away") as consumer:
        assert consumer.received == []
        consumer.publish(f"{node.base}/ctl/away", "replay")
        assert consumer.final("away") == final
        assert [m.payload for m in consumer.received] == said

        consumer.received.clear()
        consumer.publish(f"{node.base}/ctl/away", {"op": "replay", "from_seq": 2, "gen": 1})
        consumer.final("away")
        assert [m.payload for m in consumer.received] == said[2:]


def test_what_the_node_does_not_know_cannot_be_replayed(broker: Broker, node: NodeProcess) -> None:
    with Listener(broker.host, broker.port, f"{node.base}/reply/never-asked") as consumer:
        consumer.publish(f"{node.base}/ctl/never-asked", "replay")
        final = consumer.final("never-asked")
    assert (final["gen"], final["seq"], final["error"]["code"]) == (0, 0, "unknown_request")


def test_a_session_that_the_broker_had_no_room_for_is_made_whole(
    start_broker: StartBroker, start_node: StartNode
) -> None:
    """Mosquitto drops the tail of what waits for a session, and tells nobody: the consumer finds out and asks."""
    broker = start_broker(config=["max_queued_messages 5"])
    node = start_node(broker)
    body = json.dumps({**ENDLESS, "max_tokens": 150, "include_text": False}).encode()
    with closing(Consumer("sleeper", broker.port, node.name)) as consumer:
        wait_until(lambda: consumer.state == "online", "the consumer is subscribed")
        exchange = Exchange("nap", Kind.REQ, body)
        consumer.send(exchange)
        wait_until(lambda: exchange.chunks > 0, "the answer has begun")
        consumer.leave()
        with Listener(broker.host, broker.port, f"{node.base}/reply/sleeper/nap") as witness:
            witness.publish(f"{node.base}/ctl/sleeper/nap", "replay")
            last = witness.final("nap", 60)
        assert not exchange.done
        consumer.come_back()

        def whole() -> bool:
            consumer.serve()
            return exchange.done

        wait_until(whole, "the answer is whole", 30)

    assert (exchange.wrong, consumer.wrong) == ([], [])
    assert exchange.result is not None
    assert (exchange.result.final.crc32, exchange.result.healed) == (last["crc32"], False)
    assert exchange.replays >= 1
