"""A consumer that wants to lose nothing: a session that the broker keeps, QoS 1, the same id again, and replay."""

from __future__ import annotations

import json
import math
import threading
import time
import traceback
from typing import Any

from paho.mqtt.client import Client as Paho
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged.wire.topics import Kind, RequestPath, Topics
from tests.chaos.exchange import Exchange
from tests.chaos.proxy import HOST

#: How long a request may be silent before it is published again (nothing came yet) or replayed, seconds.
PATIENCE_S = 3.0
#: How long a stream is paused, seconds.
_PAUSE_S = 0.7
#: Every time that did not help, the patience is doubled, up to so many times the first.
_MOST_PATIENCE = 4
#: How long the broker is to keep the session, seconds.
_SESSION_S = 3600


class Consumer:
    """Asks one node, with paho alone, directly at the broker.

    paho's thread takes messages in; `serve` does all the rest, in the caller's thread.

    Args:
        name: its client identifier, and the CLIENT level of its topics.
        port: the broker's.
        node: the node's name.
        patience_s: how long a request may be silent before something is done about it, seconds; infinite = for ever.
    """

    def __init__(self, name: str, port: int, node: str, *, patience_s: float = PATIENCE_S) -> None:
        self.name = name
        self._patience_s = patience_s
        self.open: dict[str, Exchange] = {}
        #: Messages on the reply topic of a request that nobody made, and whatever our own code stumbled over.
        self.wrong: list[str] = []
        #: The state that the node's card gave last.
        self.state = ""
        #: How many new messages have come, of all requests.
        self.came = 0
        self._done: dict[str, Exchange] = {}
        self._topics = Topics(node=node)
        self._lock = threading.Lock()
        self._client = Paho(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(min_delay=1, max_delay=1)
        self._client.max_inflight_messages_set(1000)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho has no types there
        properties.SessionExpiryInterval = _SESSION_S
        self._client.connect(HOST, port, clean_start=False, properties=properties)
        self._client.loop_start()

    def leave(self) -> None:
        """Disconnect, and leave the session with the broker."""
        self._client.disconnect()
        self._client.loop_stop()
        self._client._reset_sockets()  # paho leaves its wake-up pair to the garbage collector, which warns

    def come_back(self) -> None:
        """Connect again, after `leave`."""
        self._client.reconnect()
        self._client.loop_start()

    def close(self) -> None:
        self.leave()

    @property
    def connected(self) -> bool:
        return self._client.is_connected()

    @property
    def done(self) -> int:
        """How many requests have ended, one way or another."""
        return len(self._done)

    @property
    def exchanges(self) -> list[Exchange]:
        """All requests."""
        return [*self._done.values(), *self.open.values()]

    def send(self, exchange: Exchange) -> None:
        """Publish a request for the first time."""
        with self._lock:
            self.open[exchange.id] = exchange
            self._publish(exchange)

    def serve(self) -> None:
        """Do what is due: cancel, pause, publish again, ask for a replay; put what is done aside."""
        now = time.monotonic()
        with self._lock:
            for exchange in [one for one in self.open.values() if one.done]:
                del self.open[exchange.id]
                self._done[exchange.id] = exchange
            if not self.connected:
                return
            for exchange in self.open.values():
                self._care(exchange, now)

    def _care(self, exchange: Exchange, now: float) -> None:
        after = exchange.cancel_after
        if after is not None and not exchange.cancelled and exchange.begun and exchange.chunks >= after:
            exchange.cancelled = True
            self._ctl(exchange, b"cancel")
        self._pause(exchange, now)
        if exchange.ask_again is not None:
            if now >= exchange.ask_again:
                exchange.ask_again = None
                self._publish(exchange)
        elif now - max(exchange.heard, exchange.poked) > exchange.poke_s:
            exchange.poke_s = min(2 * exchange.poke_s, _MOST_PATIENCE * self._patience_s)
            if exchange.begun:
                exchange.poked = now
                exchange.replay_asked()
                self._ctl(exchange, exchange.replay)
                if exchange.resume_at == math.inf:  # what a broker forgets may have been this
                    self._ctl(exchange, b"resume")
            else:
                self._publish(exchange)

    def _pause(self, exchange: Exchange, now: float) -> None:
        """Have it pause when that is due, and go on when that is."""
        after = exchange.pause_after
        if exchange.resume_at is None:
            if after is not None and exchange.begun and exchange.chunks >= after:
                exchange.resume_at = now + _PAUSE_S
                self._ctl(exchange, b"pause")
        elif now >= exchange.resume_at:
            exchange.resume_at = math.inf
            self._ctl(exchange, b"resume")

    def _publish(self, exchange: Exchange) -> None:
        exchange.poked = time.monotonic()
        exchange.heard = exchange.heard or exchange.poked
        exchange.poke_s = exchange.poke_s or self._patience_s
        exchange.asked += 1
        self._client.publish(self._topic(exchange.kind, exchange), exchange.body, qos=1)

    def _ctl(self, exchange: Exchange, payload: bytes) -> None:
        self._client.publish(self._topic(Kind.CTL, exchange), payload, qos=1)

    def _topic(self, kind: Kind, exchange: Exchange) -> str:
        return self._topics.of(kind, RequestPath(id=exchange.id, client=self.name))

    # --- in paho's thread ---

    def _on_connect(self, client: Paho, *_: Any) -> None:
        # Always: a broker that was killed may have forgotten the session.
        replies = self._topics.of(Kind.REPLY, RequestPath())
        client.subscribe([(f"{replies}/{self.name}/#", 1), (self._topics.status, 1)])

    def _on_message(self, _client: Paho, _data: Any, message: MQTTMessage) -> None:
        try:
            self._take(message)
        except Exception:  # noqa: BLE001 - paho's thread would end without a word
            self.wrong.append(traceback.format_exc())

    def _take(self, message: MQTTMessage) -> None:
        if message.topic == self._topics.status:
            self.state = json.loads(message.payload)["state"]
            return
        id_ = message.topic.rpartition("/")[2]
        with self._lock:
            # What is done is watched on: a second final would come late.
            exchange = self.open.get(id_) or self._done.get(id_)
            if exchange is None:
                self.wrong.append(f"a message on {message.topic}, which nobody asked for")
                return
            before = exchange.heard
            exchange.feed(bytes(message.payload), time.monotonic())
            self.came += exchange.heard != before
