"""A consumer without any of the project's code in it: paho alone, as third parties have it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Received:
    """A message as it came."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: dict[str, Any]

    def json(self) -> dict[str, Any]:
        value = json.loads(self.payload)
        assert isinstance(value, dict)
        return value


class Listener:
    """Subscribes, publishes, and keeps what came."""

    def __init__(self, host: str, port: int, *filters: str, version: int = paho.MQTTv5, client_id: str = "") -> None:
        self._filters = filters
        self._version = version
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=version)  # type: ignore[arg-type]
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(min_delay=1, max_delay=1)
        self._changed = threading.Condition()
        self._subscribed = False
        self._host, self._port = host, port
        self.received: list[Received] = []

    def __enter__(self) -> Self:
        self._client.connect(self._host, self._port)
        self._client.loop_start()
        with self._changed:
            assert self._changed.wait_for(lambda: self._subscribed, _TIMEOUT_S), "no SUBACK"
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._client._reset_sockets()  # paho leaves its wake-up pair to the garbage collector, which warns

    def publish(self, topic: str, payload: str | bytes | dict[str, Any] = b"", *, qos: int = 1, retain: bool = False,
                **properties: Any) -> None:  # fmt: skip
        """Publish, and wait until the broker has it. Properties by paho's names: `ResponseTopic="…"`."""
        body = json.dumps(payload) if isinstance(payload, dict) else payload
        props = None
        if properties:
            props = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            for name, value in properties.items():
                setattr(props, name, value)
        self._client.publish(topic, body, qos=qos, retain=retain, properties=props).wait_for_publish(_TIMEOUT_S)

    def wait(
        self,
        wanted: Callable[[Received], bool],
        timeout_s: float = _TIMEOUT_S,
        explain: Callable[[], str] = lambda: "",
    ) -> Received:
        """The first message that is wanted, past or to come."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            looked = 0
            while True:
                for message in self.received[looked:]:
                    if wanted(message):
                        return message
                looked = len(self.received)
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    seen = "\n".join(f"{m.topic} {m.payload[:200]!r}" for m in self.received[-10:])
                    raise AssertionError(f"not within {timeout_s} s; last came:\n{seen}\n{explain()}")

    def first(self, id_: str) -> dict[str, Any]:
        """The first message of a request's reply."""
        return self.wait(lambda m: m.payload.startswith(b'{"id"') and m.json()["id"] == id_).json()

    def chunk(self, id_: str) -> dict[str, Any]:
        """The first chunk of a request."""
        return self.wait(lambda m: b'"type":"chunk"' in m.payload and m.json()["id"] == id_).json()

    def final(self, id_: str, timeout_s: float = _TIMEOUT_S, *, topic: str | None = None) -> dict[str, Any]:
        """The final of a request."""

        def is_it(message: Received) -> bool:
            body = message.json() if message.payload.startswith(b'{"id"') else {}
            return body.get("id") == id_ and body["type"] == "final" and topic in (None, message.topic)

        return self.wait(is_it, timeout_s).json()

    def stream(self, id_: str) -> list[dict[str, Any]]:
        """All messages of a request's reply that have come, in the order in which they came."""
        bodies = [m.json() for m in self.received if m.payload.startswith(b'{"id"')]
        return [body for body in bodies if body.get("id") == id_]

    def _on_connect(self, client: paho.Client, *_: Any) -> None:
        if not self._filters:
            self._on_subscribe()
            return
        if self._version == paho.MQTTv5:
            client.subscribe([(f, SubscribeOptions(qos=1)) for f in self._filters])
        else:
            client.subscribe([(f, 1) for f in self._filters])

    def _on_subscribe(self, *_: Any) -> None:
        with self._changed:
            self._subscribed = True
            self._changed.notify_all()

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        properties = message.properties.__dict__ if message.properties else {}
        received = Received(message.topic, bytes(message.payload), message.qos, message.retain, dict(properties))
        with self._changed:
            self.received.append(received)
            self._changed.notify_all()
