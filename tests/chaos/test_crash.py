"""kill -9 of the daemon: every stream goes on after the restart, and its consumer does nothing for that."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from tests.brokers import Broker
from tests.fixtures import StartNode
from tests.listener import Listener
from tests.nodes import ENDLESS

pytestmark = pytest.mark.model
STREAMS, TOKENS = 8, 80


def once(copies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each message once, in the order of the first copies, which all others must equal."""
    first: dict[tuple[int, int], dict[str, Any]] = {}
    for copy in copies:
        assert first.setdefault((copy["gen"], copy["seq"]), copy) == copy
    return list(first.values())


def test_eight_streams_go_on_after_kill_9_of_the_daemon(broker: Broker, start_node: StartNode) -> None:
    node = start_node(broker)
    names = [f"s{i}" for i in range(STREAMS)]
    with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener:
        for name in names:
            listener.publish(f"{node.base}/req/{name}", {**ENDLESS, "max_tokens": TOKENS})
        for name in names:
            listener.chunk(name)
        node.kill()
        unfinished = [name for name in names if listener.stream(name)[-1]["type"] != "final"]
        node.start()
        finals = {name: listener.final(name, 60) for name in names}

    assert unfinished == names, "the kill came too late to be in the middle of all"
    for name, final in finals.items():
        messages = once(listener.stream(name))
        assert [m["seq"] for m in messages] == list(range(len(messages)))
        assert {m["gen"] for m in messages} == {1}
        assert [m["type"] for m in messages].count("final") == 1
        text = "".join(m["text"] for m in messages if m["type"] == "chunk")
        assert (len(text), zlib.crc32(text.encode())) == (final["chars"], final["crc32"])
        assert (final["finish_reason"], final["usage"]["completion_tokens"]) == ("length", TOKENS)
        assert final["metrics"]["resumed"] == 1


def test_what_waited_is_served_after_kill_9_of_the_daemon(broker: Broker, start_node: StartNode) -> None:
    """Requests that were accepted and had not begun, streamed or not; and twice in a row."""
    node = start_node(broker, EDGED_MODELS='[{"path":"starter","parallel":1,"threads":1}]')
    with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener:
        for i in range(3):
            listener.publish(f"{node.base}/req/q{i}", {**ENDLESS, "max_tokens": 30})
        listener.publish(f"{node.base}/ask/a", {**ENDLESS, "max_tokens": 5})
        for i in range(3):
            listener.wait(lambda m, i=i: m.json()["id"] == f"q{i}")  # type: ignore[misc] # mypy knows no such lambda
        for _ in range(2):
            node.kill()
            node.start()
        finals = {name: listener.final(name, 60) for name in ("q0", "q1", "q2", "a")}

    assert {final["gen"] for final in finals.values()} == {1}
    assert [finals[name]["usage"]["completion_tokens"] for name in finals] == [30, 30, 30, 5]
    assert [m["type"] for m in once(listener.stream("a"))] == ["final"]
