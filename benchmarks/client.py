"""One consumer for scenarios with a plot: it asks, watches what comes, cancels, and goes on, all in one thread.

Throughput is measured by `consumer.py`, a process of its own; here it counts more that a scenario can decide by what
has come. While the clock runs, messages are looked into as far as that needs; `Exchange.check` proves them afterwards.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from paho.mqtt.client import Client as Paho
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from benchmarks.figures import BenchmarkError
from benchmarks.node import NAME, ONLINE_S, Node
from edged.wire import Topics
from edged.wire.assembly import Reassembler
from edged.wire.errors import WireError
from edged.wire.stream import AssemblyError


@dataclass(slots=True)
class Exchange:
    """One request and what has come of it; times are seconds of the machine's monotonic clock.

    Attributes:
        chunks: when a chunk came, and its tokens.
        prefilled: tokens of the prompt that are computed, as the last `progress` said.
        ended: when the final came.
        final: that message; empty until then.
    """

    id: str
    sent: float
    chunks: list[tuple[float, int]] = field(default_factory=list)
    prefilled: int = 0
    ended: float = 0.0
    final: dict[str, Any] = field(default_factory=dict)
    payloads: list[bytes] = field(default_factory=list)

    def take(self, now: float, payload: bytes) -> None:
        """Note a message of the reply."""
        self.payloads.append(payload)
        message = json.loads(payload)
        match message["type"]:
            case "chunk":
                self.chunks.append((now, message["n"]))
            case "progress":
                self.prefilled = message.get("done") or self.prefilled
            case "final":
                self.ended, self.final = now, message

    @property
    def ttft_ms(self) -> float:
        """From PUBLISH to the first chunk, milliseconds.

        Raises:
            BenchmarkError: it had no text.
        """
        if not self.chunks:
            raise BenchmarkError(f"the model ended the answer to request {self.id} before it had any text")
        return (self.chunks[0][0] - self.sent) * 1000

    @property
    def tokens(self) -> int:
        """How many have come."""
        return sum(n for _, n in self.chunks)

    def gaps_ms(self, after: float, until: float) -> list[float]:
        """The gaps between chunks that ended in a stretch of time, milliseconds."""
        return [(b - a) * 1000 for (a, _), (b, _) in pairwise(self.chunks) if after < b <= until]

    @property
    def failure(self) -> str:
        """Why it did not end as a consumer wants it, whole and proved by its CRC; empty where it did."""
        assembly = Reassembler(self.id)
        try:
            for payload in self.payloads:
                assembly.feed(payload)
        except (AssemblyError, WireError) as error:
            return str(error)
        if assembly.result is None:
            return f"request {self.id}: its stream is not complete"
        if self.final["finish_reason"] == "error":
            why = self.final["error"]
            return f"request {self.id} ended with {why['code']}: {why['message']}"
        return ""

    def check(self) -> None:
        """Make sure that it ended right.

        Raises:
            BenchmarkError: it did not.
        """
        if self.failure:
            raise BenchmarkError(self.failure)


class Client:
    """Asks a node, and waits; made by `client`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._topics = Topics(node=NAME)
        self._card: dict[str, Any] = {}
        self._open: dict[str, Exchange] = {}
        self._asked = 0
        self._last = 0.0
        self._client = Paho(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", node.port, keepalive=0)  # a scenario may leave it alone for minutes

    def ask(self, prompt: str, max_tokens: int, **fields: Any) -> Exchange:
        """Send a request whose prompt is completed as it stands; `fields` are the contract's."""
        self._asked += 1
        exchange = Exchange(f"r{self._asked}", time.monotonic())
        self._open[exchange.id] = exchange
        body = {"prompt": prompt, "raw": True, "max_tokens": max_tokens, **fields}
        self._client.publish(f"{self._topics.base}/req/{NAME}/{exchange.id}", json.dumps(body), qos=1)
        return exchange

    def cancel(self, exchange: Exchange) -> float:
        """Ask the node to end a request; returns when, seconds of the monotonic clock."""
        now = time.monotonic()
        self._client.publish(f"{self._topics.base}/ctl/{NAME}/{exchange.id}", "cancel", qos=1)
        return now

    def until(self, condition: Callable[[], bool], what: str, *, patience_s: float = 120.0) -> None:
        """Take in messages until something is so.

        Raises:
            BenchmarkError: it was not so in time, or the connection failed.
        """
        if not self.within(condition, patience_s):
            state = self._card.get("state", "nowhere to be seen")
            raise BenchmarkError(f"after {patience_s:.0f} s {what} is still missing, and the node is {state}")

    def within(self, condition: Callable[[], bool], patience_s: float) -> bool:
        """Take in messages until something is so, at most for so many seconds; whether it is.

        Raises:
            BenchmarkError: the connection failed.
            StackError: the daemon ended.
        """
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self._node.daemon.check()
            code = self._client.loop(0.05)
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                raise BenchmarkError(f"the connection to the broker failed: {code.name}")
        return True

    def online(self, *, patience_s: float = ONLINE_S) -> None:
        """Wait until the node serves.

        Raises:
            BenchmarkError: it does not in time.
        """
        self.until(lambda: self._card.get("state") in {"online", "busy"}, "the node's status", patience_s=patience_s)

    def finish(self, exchanges: Iterable[Exchange], *, patience_s: float = 300.0) -> None:
        """Wait for the finals of some requests, which must end right.

        Raises:
            BenchmarkError: one did not, or not in time.
        """
        waited = list(exchanges)
        self.until(lambda: all(one.final for one in waited), "an answer", patience_s=patience_s)
        for exchange in waited:
            exchange.check()

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client._reset_sockets()  # noqa: SLF001 - paho leaves its wake-up pair to the garbage collector

    def _on_connect(self, client: Paho, *_: Any) -> None:
        client.subscribe([(self._topics.status, 0), (f"{self._topics.base}/reply/#", 1)])

    def _on_message(self, _client: Paho, _data: Any, message: MQTTMessage) -> None:
        now = time.monotonic()
        if message.topic == self._topics.status:
            self._card = json.loads(message.payload)
            return
        exchange = self._open.get(message.topic.rpartition("/")[2])
        if exchange is not None:
            exchange.take(now, bytes(message.payload))
            if exchange.final:
                del self._open[exchange.id]


@contextmanager
def client(node: Node) -> Iterator[Client]:
    """A client of a node that is online, and has answered once, so that everything has been used.

    What it collects makes Python look for garbage in the middle of a measurement, for 30 ms in which nothing that came
    is noted, and a core is taken from the node: so it does that before and afterwards.

    Raises:
        BenchmarkError: the node did not come online.
    """
    one = Client(node)
    gc.collect()
    gc.disable()
    try:
        one.online()
        one.finish([one.ask("7301, 4421,", 4)])
        yield one
    finally:
        one.close()
        gc.enable()
