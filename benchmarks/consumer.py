"""The consumers: one MQTT 5 client that sends the requests of all streams and notes when which message came.

A child process of `serving.py`. It reads an `Order` as a line of JSON from its standard input, says that it is ready,
waits for another line, measures, and writes a `Record`.
While the clock runs it does what any subscriber has to do and no more: messages are looked into afterwards.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from benchmarks.load import Load
from benchmarks.machine import Cpu
from edged.wire import Topics

#: The line that is written and awaited before anything is measured.
READY = "ready"
#: How the daemon writes this field; quotes inside of text are escaped, so no text looks like it.
_FINAL = b'"type":"final"'


@dataclass(frozen=True, slots=True)
class Order:
    """What to measure, and where.

    Attributes:
        patience_s: how long it may take, seconds; that the node comes online included.
        pids: the processes whose processor time is to be told, by name.
    """

    port: int
    node: str
    load: Load
    patience_s: float
    pids: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """What happened when; times are seconds of the machine's monotonic clock.

    Attributes:
        card: the node's status card.
        sent: by request: when it was published.
        messages: when a message of a reply came, and its payload.
        cpus: processors in use, on average, by process.
        waits: threads that waited for a processor, on average, by process.
        began: since when these two were measured: the first request.
        ended: until when: the last final.
        complaint: why the measurement failed; empty where it did not.
    """

    card: dict[str, Any] = field(default_factory=dict)
    sent: dict[str, float] = field(default_factory=dict)
    messages: list[tuple[float, str]] = field(default_factory=list)
    cpus: dict[str, float] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=dict)
    began: float = 0.0
    ended: float = 0.0
    complaint: str = ""


class Consumer:
    """Sends the requests of one order and takes in what comes."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._topics = Topics(node=order.node)
        self._record = Record()
        self._messages: list[tuple[float, bytes | bytearray]] = []
        self._turns = [0] * order.load.streams
        self._running = 0
        self._begun: float | None = None
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message

    def run(self) -> Record:
        """Wait until the node is online, send the requests, and wait for their ends."""
        deadline = time.monotonic() + self._order.patience_s
        pids = {**self._order.pids, "consumer": os.getpid()}
        client, record = self._client, self._record
        client.connect("127.0.0.1", self._order.port)
        cpu: Cpu | None = None
        while self._begun is None or self._running:
            code = client.loop(0.1)
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                record.complaint = f"the connection to the broker failed: {code.name}"
                break
            if time.monotonic() > deadline:
                state = record.card.get("state", "nowhere to be seen")
                record.complaint = (
                    f"after {self._order.patience_s:.0f} s the node is {state} and {self._running} answers are missing"
                )
                break
            if self._begun is None and record.card.get("state") == "online":
                print(READY, flush=True)
                sys.stdin.readline()
                cpu = Cpu.now(pids)
                self._begun = time.monotonic()
                for stream in range(self._order.load.streams):
                    self._send(stream)
        if cpu is not None and self._begun is not None:
            record.began, record.ended = self._begun, time.monotonic()
            after, seconds = Cpu.now(pids), record.ended - record.began
            record.cpus, record.waits = after.since(cpu, seconds=seconds), after.waits(cpu, seconds=seconds)
        client.disconnect()
        record.messages = [(at, payload.decode()) for at, payload in self._messages]
        return record

    def _on_connect(self, client: Client, *_: Any) -> None:
        client.subscribe([(self._topics.status, 0), (f"{self._topics.base}/reply/#", 1)])

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        now = time.monotonic()
        if message.topic == self._topics.status:
            self._record.card = json.loads(message.payload)
            return
        self._messages.append((now, message.payload))
        if _FINAL in message.payload:
            self._running -= 1
            load = self._order.load
            if self._begun is not None and now < self._begun + load.turnover_s:
                self._send(int(message.topic.rpartition("/")[2].split("-")[1]))

    def _send(self, stream: int) -> None:
        load, turn = self._order.load, self._turns[stream]
        self._turns[stream] += 1
        self._running += 1
        request = f"{load.seed}-{stream}-{turn}"
        payload = json.dumps(
            {
                "prompt": load.prompt(stream, turn),
                "raw": True,
                "max_tokens": load.tokens,
                "seed": load.sampler_seed(stream, turn),
            }
        )
        self._record.sent[request] = time.monotonic()
        self._client.publish(f"{self._topics.base}/req/{request}", payload, qos=1)


def main() -> None:
    order = json.loads(sys.stdin.readline())
    load = Load(**order.pop("load"))
    json.dump(asdict(Consumer(Order(load=load, **order)).run()), sys.stdout)


if __name__ == "__main__":
    main()
