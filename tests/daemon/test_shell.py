"""Nothing but `mosquitto_pub`, `mosquitto_sub` and `mosquitto_rr`, on the real model."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.nodes import ENDLESS, NodeProcess

pytestmark = pytest.mark.model

VERSIONS = ["mqttv311", "mqttv5"]


def tool(name: str) -> str:
    path = shutil.which(name)
    assert path is not None, f"{name} is missing; this installs it: apt-get install mosquitto-clients coreutils"
    return path


def publish(node: NodeProcess, version: str, level: str, payload: str, *more: str) -> None:
    command = [tool("mosquitto_pub"), "-h", node.host, "-p", str(node.port), "-V", version, "-q", "1"]
    subprocess.run([*command, "-t", f"{node.base}/{level}", "-m", payload, *more], check=True, timeout=10)


@contextmanager
def subscribed(node: NodeProcess, version: str, topic: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    """`mosquitto_sub`, certainly subscribed: -d says so, and without `stdbuf` would say it late."""
    command = [
        tool("stdbuf"),
        "-oL",
        tool("mosquitto_sub"),
        "-h",
        node.host,
        "-p",
        str(node.port),
        "-V",
        version,
        "-q",
        "1",
        "-t",
        topic,
    ]
    with subprocess.Popen([*command, "-W", "60", "-d", *more], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Subscribed"):
                break
        yield process
        process.terminate()


def lines_until_final(process: subprocess.Popen[str], start: str = "{") -> list[str]:
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            lines.append(line.strip())
            if '"type":"final"' in line:
                return lines
    raise AssertionError(f"no final came, but {lines}")


def assert_complete(messages: list[dict[str, Any]]) -> dict[str, Any]:
    assert [m["seq"] for m in messages] == list(range(len(messages)))
    assert messages[0]["type"] == "accepted"
    final = messages[-1]
    assert "".join(m["text"] for m in messages if m["type"] == "chunk") == final["text"] != ""
    return final


@pytest.mark.parametrize("version", VERSIONS)
def test_plain_text_streams_back(node: NodeProcess, version: str) -> None:
    id_ = f"text-{version}"
    with subscribed(node, version, f"{node.base}/reply/{id_}") as sub:
        publish(node, version, f"req/{id_}", "Why is the sky blue? Answer in two sentences.")
        messages = [json.loads(line) for line in lines_until_final(sub)]

    final = assert_complete(messages)
    assert final["finish_reason"] in ("stop", "length")
    assert final["metrics"]["tokens_per_second"] > 0


@pytest.mark.parametrize("version", VERSIONS)
def test_json_with_parameters(node: NodeProcess, version: str) -> None:
    id_ = f"json-{version}"
    body = {**ENDLESS, "max_tokens": 7, "metadata": {"room": "kitchen"}}
    with subscribed(node, version, f"{node.base}/reply/shell/{id_}") as sub:
        publish(node, version, f"req/shell/{id_}", json.dumps(body))
        messages = [json.loads(line) for line in lines_until_final(sub)]

    final = assert_complete(messages)
    assert final["usage"]["completion_tokens"] == 7
    assert final["finish_reason"] == "length"
    assert messages[0]["metadata"] == final["metadata"] == {"room": "kitchen"}


@pytest.mark.parametrize("version", VERSIONS)
def test_without_an_id_the_daemon_makes_one(node: NodeProcess, version: str) -> None:
    with subscribed(node, version, f"{node.base}/reply/#", "-v") as sub:
        publish(node, version, "ask", json.dumps({**ENDLESS, "max_tokens": 3}))
        [line] = lines_until_final(sub, start=node.base)

    topic, _, payload = line.partition(" ")
    assert topic == f"{node.base}/reply/{json.loads(payload)['id']}"


@pytest.mark.parametrize("version", VERSIONS)
def test_ask_is_answered_by_one_message(node: NodeProcess, version: str) -> None:
    id_ = f"ask-{version}"
    with subscribed(node, version, f"{node.base}/reply/{id_}") as sub:
        publish(node, version, f"ask/{id_}", json.dumps({**ENDLESS, "max_tokens": 5}))
        [line] = lines_until_final(sub)

    assert (json.loads(line)["seq"], json.loads(line)["text"] != "") == (0, True)


def test_response_topic_and_correlation_data(node: NodeProcess) -> None:
    """The format makes `mosquitto_sub` print the Correlation Data beside each payload."""
    with subscribed(node, "mqttv5", "reply/my/place", "-F", "%D|%C|%p") as sub:
        properties = ["-D", "publish", "response-topic", "reply/my/place", "-D", "publish", "correlation-data", "c0rr"]
        publish(node, "mqttv5", "req/rt", json.dumps({**ENDLESS, "max_tokens": 5}), *properties)
        lines = lines_until_final(sub, start="c0rr|application/json|")

    assert_complete([json.loads(line.split("|", 2)[2]) for line in lines])


def test_mosquitto_rr_on_ask(node: NodeProcess) -> None:
    command = [tool("mosquitto_rr"), "-h", node.host, "-p", str(node.port), "-V", "mqttv5", "-q", "1", "-W", "60"]
    answer = subprocess.run(
        [*command, "-t", f"{node.base}/ask/rr", "-e", "reply/rr", "-m", '{"prompt":"Say hi.","max_tokens":8}'],
        check=True,
        timeout=70,
        capture_output=True,
        text=True,
    ).stdout

    assert json.loads(answer)["finish_reason"] in ("stop", "length")
