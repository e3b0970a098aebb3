"""A consumer in plain MQTT 3.1.1, without any code of edged: what a program in any language has to do.

It puts the answer together by the rules of docs/protocol.md, section 3: messages may come doubled or out of order,
`seq` tells their place, and the final proves the text. All state is in four variables of `put_together`;
port it to whatever your device speaks.

    pip install paho-mqtt
    python plain_consumer.py --host broker.lan --node edge 'Name three birds.'

Exits with 0 if the answer is whole, 1 if it is not or the request failed, 2 if nothing came in time.
"""
# ruff: noqa: INP001 - an example stands alone, in no package

from __future__ import annotations

import argparse
import json
import queue
import sys
import uuid
import zlib
from typing import Any

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

#: How long to wait for the next message, seconds.
PATIENCE_S = 120.0


def put_together(messages: queue.SimpleQueue[bytes]) -> int:
    """Print the text of one answer as it becomes complete, in order; returns the exit code.

    Raises:
        queue.Empty: nothing came within PATIENCE_S.
    """
    answer = ""  # the text so far, in order
    waiting: dict[int, dict[str, Any]] = {}  # messages by seq that came before their turn
    generation, wanted = 0, 0  # what is being executed, and the next seq of it
    while True:
        message = json.loads(messages.get(timeout=PATIENCE_S))
        if message["gen"] > generation:  # a new execution: what there was is void
            generation, wanted, answer, waiting = message["gen"], 0, "", {}
        if message["gen"] < generation or message["seq"] < wanted:
            continue  # of an older execution, or a copy
        waiting[message["seq"]] = message
        while (current := waiting.pop(wanted, None)) is not None:
            wanted += 1
            if current["type"] == "chunk":
                answer += current["text"]
                show(current["text"])
            elif current["type"] == "final":
                return judge(current, answer)
        if message["type"] == "final" and "text" in message:  # it stands in for what never came
            show(message["text"][len(answer) :])
            return judge(message, message["text"])


def show(text: str) -> None:
    """Print a piece of the answer at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def judge(final: dict[str, Any], answer: str) -> int:
    """Whether the answer is whole, as an exit code; the reason if it is not."""
    if final["finish_reason"] == "error":
        sys.stderr.write(f"\n{final['error']['code']}: {final['error']['message']}\n")
        return 1
    whole = (len(answer), zlib.crc32(answer.encode())) == (final["chars"], final["crc32"])
    sys.stdout.write("\n" if whole else "\n[a part of this answer is missing]\n")
    return 0 if whole else 1


def main() -> int:
    """Ask, and show the answer."""
    parser = argparse.ArgumentParser(description="Ask an edged node over MQTT 3.1.1.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--node", default="edge")
    parser.add_argument("prompt")
    options = parser.parse_args()

    base, request_id = f"edged/v1/{options.node}", uuid.uuid4().hex
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311, reconnect_on_failure=False)

    def on_connect(*_: object) -> None:
        client.subscribe(f"{base}/reply/{request_id}", qos=1)

    def on_subscribe(*_: object) -> None:
        # Not before the subscription stands, or the first messages are lost.
        client.publish(f"{base}/req/{request_id}", options.prompt, qos=1)

    def on_message(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        messages.put(bytes(message.payload))

    client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
    client.connect(options.host, options.port)
    client.loop_start()
    try:
        return put_together(messages)
    except queue.Empty:
        sys.stderr.write(f"nothing came for {PATIENCE_S:.0f} s; is node {options.node!r} there?\n")
        return 2
    finally:
        client.disconnect()
        client.loop_stop()


if __name__ == "__main__":
    sys.exit(main())
