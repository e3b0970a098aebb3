"""What stands around a connection in these tests: the core's thread, and other people's clients."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edged.core.events import BrokerConnected, BrokerDisconnected, Event, MessageArrived, Publish, Published
from edged.mqtt.connection import Connection
from edged.mqtt.happenings import Happening
from edged.mqtt.settings import Settings
from tests.mqtt.scripted import PATIENCE_S


class Core:
    """Stands for the core's thread: takes what the connection posts, and keeps the events."""

    def __init__(
        self,
        broker: Any,
        *,
        name: str = "edged-test",
        subscriptions: Sequence[str] = (),
        will: Publish | None = None,
        has_will: bool = True,
        **settings: Any,
    ) -> None:
        defaults: dict[str, Any] = {"keepalive_s": 30, "backoff_min_s": 0.02, "backoff_max_s": 0.1}
        self.inbox: queue.SimpleQueue[Happening] = queue.SimpleQueue()
        self.events: list[Event] = []
        self.connection = Connection(
            Settings(host=broker.host, port=broker.port, client_id=name, **(defaults | settings)),
            will=(will or Publish(f"will/{name}", b"{}")) if has_will else None,
            subscriptions=subscriptions,
            post=self.inbox.put,
        )

    def __enter__(self) -> Self:
        self.connection.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.connection.stop(5), "the connection did not stop"

    def pump(self, until: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        """Do the core's work until something is so."""
        deadline = time.monotonic() + patience_s
        while not until():
            try:
                happening = self.inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(
                    f"did not happen within {patience_s} s; the last events: {self.events[-5:]}"
                ) from None
            self.events += self.connection.handle(happening)
            self.connection.flush()

    def connect(self) -> Self:
        """Wait until publishes flow."""
        self.pump(lambda: self.connection.connected)
        return self

    def linger(self, seconds: float) -> None:
        """Do the core's work for a while; for what must not happen."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self.events += self.connection.handle(self.inbox.get(timeout=left))
                self.connection.flush()

    def publish(self, topic: str, payload: bytes = b"x", **fields: Any) -> None:
        self.connection.publish(Publish(topic, payload, **fields))
        self.connection.flush()

    def acknowledge(self, ack: object) -> None:
        self.connection.acknowledge(ack)
        self.connection.flush()

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def arrived(self) -> list[MessageArrived]:
        return self.of(MessageArrived)

    @property
    def confirmed(self) -> list[object]:
        """The tokens of `Published`, in order."""
        return [event.token for event in self.of(Published)]

    @property
    def reasons(self) -> list[str]:
        return [event.reason for event in self.of(BrokerDisconnected)]

    @property
    def times_connected(self) -> int:
        return len(self.of(BrokerConnected))


class Consumer:
    """Somebody else's client: plain paho, as its documentation shows it."""

    def __init__(self, broker: Any, topic_filter: str, *, version: int = 5) -> None:
        five = version == 5
        subscribed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[MQTTMessage] = queue.SimpleQueue()
        messages = self._messages  # no reference to self in the callbacks: a cycle would close sockets too late
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
        )
        self.client.on_message = lambda _client, _data, message: messages.put(message)
        self.client.on_subscribe = lambda *_: subscribed.put(None)
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()
        options = SubscribeOptions(qos=1, retainAsPublished=True)
        self.client.subscribe(topic_filter, **({"options": options} if five else {"qos": 1}))
        subscribed.get(timeout=PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        self.client._reset_sockets()  # paho leaves its wake-up pair to the garbage collector, which warns

    def next(self) -> MQTTMessage:
        return self._messages.get(timeout=PATIENCE_S)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, **properties: Any) -> None:
        """Publish, and wait for the PUBACK."""
        packed = None
        if properties:
            packed = Properties(3)  # type: ignore[no-untyped-call]  # paho's properties have no types
            for name, value in properties.items():
                setattr(packed, name, value)
        self.client.publish(topic, payload, qos=qos, retain=retain, properties=packed).wait_for_publish(PATIENCE_S)
