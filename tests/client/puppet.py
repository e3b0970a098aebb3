"""A node as the tests want it: it speaks the daemon's side of the contract, well or badly, as it is told."""

from __future__ import annotations

import queue
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from paho.mqtt.client import Client as Paho
from paho.mqtt.client import MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edged.wire.errors import ErrorCode
from edged.wire.messages import (
    Accepted,
    Chunk,
    Error,
    Final,
    FinishReason,
    Metrics,
    NodeState,
    Progress,
    Status,
    Usage,
)
from edged.wire.request import Control, Request, parse_control, parse_request
from edged.wire.topics import Kind, RequestPath, Topics
from tests.brokers import Broker

#: The keywords of a client, to which a test may add.
Options = Mapping[str, Any]
#: The longest that a test waits for something that has to happen, seconds.
PATIENCE_S = 20.0


class Asked:
    """A request that has reached the node, and the pen for its reply. Messages are numbered as they are made."""

    def __init__(self, puppet: PuppetNode, kind: Kind, path: RequestPath, payload: bytes) -> None:
        self.kind = kind
        self.path = path
        self.request: Request = parse_request(payload, max_bytes=10**6)
        self.id = path.id or ""
        self.gen = 1
        self._puppet = puppet
        self._seq = 0
        self._text = ""

    def number(self) -> dict[str, Any]:
        """What every message carries."""
        self._seq += 1
        return {"id": self.id, "gen": self.gen, "seq": self._seq - 1, "ts": 1795226000.123}

    def send(self, *messages: Accepted | Progress | Chunk | Final) -> None:
        for message in messages:
            self._puppet.publish(self._puppet.topics.reply(self.path), message.payload())

    def accept(self) -> None:
        metadata = self.request.metadata
        self.send(
            Accepted(
                **self.number(),
                node=self._puppet.topics.node,
                boot=self._puppet.boot,
                model="starter",
                queue_position=0,
                metadata=metadata,
            )
        )

    def chunk(self, text: str) -> Chunk:
        """A chunk, not yet sent."""
        self._text += text
        return Chunk(**self.number(), text=text, n=1)

    def say(self, *texts: str) -> None:
        self.send(*(self.chunk(text) for text in texts))

    def final(self, finish_reason: FinishReason = "stop", *, include_text: bool = True, **more: Any) -> Final:
        """The final of what was said, not yet sent."""
        return Final(
            **self.number(),
            finish_reason=finish_reason,
            text=self._text if include_text else None,
            chars=len(self._text),
            crc32=zlib.crc32(self._text.encode()),
            node=self._puppet.topics.node,
            model="starter",
            usage=Usage(prompt_tokens=5, completion_tokens=7),
            metrics=Metrics(
                queue_time_ms=1,
                time_to_first_token_ms=143,
                prefill_time_ms=120,
                generation_time_ms=1480,
                e2e_time_ms=1624,
                tokens_per_second=64.2,
                prompt_tokens_per_second=210,
                mean_batch_size=1,
            ),
            **more,
        )

    def finish(self, finish_reason: FinishReason = "stop", **more: Any) -> None:
        self.send(self.final(finish_reason, **more))

    def restart(self) -> None:
        """Begin again, in the next generation."""
        self.gen, self._seq, self._text = self.gen + 1, 0, ""

    def refuse(self, code: ErrorCode, message: str, *, retry_after_ms: int | None = None) -> None:
        self.gen = 0
        self.finish("error", error=Error.of(code, message, retry_after_ms=retry_after_ms))

    def answer(self, *texts: str) -> None:
        """A whole reply, of the kind that was asked for."""
        if self.kind is Kind.REQ:
            self.accept()
            self.say(*texts)
        else:
            self._text = "".join(texts)
        self.finish()


class PuppetNode:
    """A node on a real broker. It keeps what it is asked for `asked`; or answers by itself, with `on_request`."""

    def __init__(self, broker: Broker, root: str, name: str = "kitchen", *, boot: int = 3) -> None:
        self.broker = broker
        self.topics = Topics(name, root)
        self.boot = boot
        self.on_request: Callable[[Asked], None] | None = None
        self.cancelled: queue.Queue[str] = queue.Queue()
        self.replayed: queue.Queue[Control] = queue.Queue()
        self._asked: queue.Queue[Asked] = queue.Queue()
        self._subscribed = threading.Event()
        self._paho = Paho(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5, reconnect_on_failure=False)
        self._paho.on_message = self._on_message
        self._paho.on_subscribe = lambda *_: self._subscribed.set()
        self._paho.will_set(self.topics.status, self.card("lost").payload(), qos=1, retain=True)
        self._paho.connect(broker.host, broker.port)
        self._paho.loop_start()
        self._paho.subscribe([(self.topics.filter(kind), 1) for kind in (Kind.REQ, Kind.ASK, Kind.CTL)])
        assert self._subscribed.wait(PATIENCE_S)

    def card(self, state: NodeState, **fields: Any) -> Status:
        return Status(state=state, node=self.topics.node, version="0", since=1.0, **{"boot": self.boot, **fields})

    def show(self, state: NodeState, **fields: Any) -> None:
        """Publish the status card; the broker has it when this returns, unless a callback of paho's calls it."""
        told = self.publish(self.topics.status, self.card(state, **fields).payload(), retain=True)
        if threading.current_thread() is not self._paho._thread:
            told.wait_for_publish(PATIENCE_S)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> MQTTMessageInfo:
        return self._paho.publish(topic, payload, qos=1, retain=retain)

    def asked(self) -> Asked:
        """The next request."""
        return self._asked.get(timeout=PATIENCE_S)

    def asked_nothing(self) -> bool:
        return self._asked.empty()

    def die(self) -> None:
        """End as by a kill: the broker publishes the will."""
        sock = self._paho.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._paho.disconnect()
        self._paho.loop_stop()
        self._paho._reset_sockets()  # paho leaves its wake-up pair to the garbage collector, which warns

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _on_message(self, _client: Paho, _userdata: object, message: MQTTMessage) -> None:
        address = self.topics.parse(message.topic)
        if address.kind is Kind.CTL:
            control = parse_control(bytes(message.payload), max_bytes=1000)
            if control.op == "replay":
                self.replayed.put(control)
                return
            assert control.op == "cancel"
            self.cancelled.put(address.path.id or "")
            return
        asked = Asked(self, address.kind, address.path, bytes(message.payload))
        if self.on_request is None:
            self._asked.put(asked)
        else:
            self.on_request(asked)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that has to happen."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE_S} s"
        time.sleep(0.005)
