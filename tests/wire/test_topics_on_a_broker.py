from __future__ import annotations

import queue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edged.wire import TopicError, check_publishable, matches
from tests.brokers import Broker

pytestmark = pytest.mark.broker
PREFIX = "wire-topics"


def _publishable(topic: str) -> bool:
    try:
        check_publishable(topic)
    except TopicError:
        return False
    return True


_text = st.text(st.characters(exclude_categories=["Cs"]).filter(lambda c: _publishable("x" + c)), max_size=20)


@settings(max_examples=10)
@given(rests=st.lists(_text, min_size=20, max_size=40))
def test_a_topic_that_passes_the_check_does_not_cost_the_connection(broker: Broker, rests: list[str]) -> None:
    topics = [f"{PREFIX}/{rest}" for rest in rests]
    seen: queue.Queue[str] = queue.Queue()

    def on_message(_client: Client, _data: object, message: MQTTMessage) -> None:
        seen.put(message.topic)

    def on_disconnect(*_: object) -> None:
        seen.put("the broker dropped the connection")

    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5, reconnect_on_failure=False)
    client.on_message = on_message
    client.on_disconnect = on_disconnect
    client.connect(broker.host, broker.port)
    client.subscribe(f"{PREFIX}/#", qos=1)
    for topic in topics:
        client.publish(topic, b"", qos=1)
    client.loop_start()
    try:
        arrived = [seen.get(timeout=20) for _ in topics]
    finally:
        client.disconnect()
        client.loop_stop()
        client._reset_sockets()  # paho leaves its wake-up pair to the garbage collector, which warns
    assert arrived == topics
    assert all(matches(f"{PREFIX}/#", topic) for topic in arrived)
