"""What is wrong is refused with the contract's code and the field's name, and the node serves the next request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from edged.engine.protocol import Generate
from tests.brokers import Broker
from tests.fixtures import StartScripted
from tests.listener import Listener
from tests.nodes import ScriptedNode

MAX_PAYLOAD = 4096


def echo(_order: Generate) -> list[str]:
    return ["fine"]


@pytest.fixture(scope="module")
def node(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedNode]:
    node = ScriptedNode(
        tmp_path_factory.mktemp("node"),
        broker.host,
        broker.port,
        "refuser",
        answer=echo,
        limits={"max_payload": MAX_PAYLOAD},
    )
    node.start()
    yield node
    node.close()


@pytest.fixture
def listener(node: ScriptedNode) -> Iterator[Listener]:
    with Listener(node.host, node.port, f"{node.base}/reply/#", f"{node.base}/events", "reply/#") as listener:
        yield listener


def assert_serves(node: ScriptedNode, listener: Listener, id_: str = "after") -> None:
    listener.publish(f"{node.base}/ask/{id_}", "hello")
    assert listener.final(id_)["text"] == "fine"


DEEP = b'{"prompt":"a","metadata":' + b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"}"

REFUSED: dict[str, tuple[bytes, str, str]] = {
    "unknown field": (b'{"prompt":"a","promt":"b"}', "bad_request", "`promt`"),
    "not yet": (b'{"prompt":"a","tools":[]}', "bad_request", "`tools`"),
    "number as text": (b'{"prompt":"a","max_tokens":"1"}', "bad_request", "`max_tokens`"),
    "bool as number": (b'{"prompt":"a","top_k":true}', "bad_request", "`top_k`"),
    "NaN": (b'{"prompt":"a","temperature":NaN}', "bad_request", "`temperature`"),
    "Infinity": (b'{"prompt":"a","top_p":Infinity}', "bad_request", "`top_p`"),
    "out of range": (b'{"prompt":"a","top_p":1.5}', "bad_request", "`top_p`"),
    "bad id": (b'{"prompt":"a","id":"a/b"}', "bad_request", "`id`"),
    "id differs from PATH": (b'{"prompt":"a","id":"other"}', "bad_request", "`id`"),
    "neither prompt nor messages": (b'{"system":"a"}', "bad_request", "`prompt` and `messages`"),
    "both": (b'{"prompt":"a","messages":[{"role":"user","content":"b"}]}', "bad_request", "`prompt` and `messages`"),
    "bad role": (b'{"messages":[{"role":"boss","content":"b"}]}', "bad_request", "`messages.0.role`"),
    "empty": (b"", "bad_request", "empty"),
    "not UTF-8": (b"\xff\xfe", "bad_request", "UTF-8"),
    "broken JSON": (b'{"prompt":', "bad_request", "JSON"),
    "too large": (b"x" * (MAX_PAYLOAD + 1), "too_large", str(MAX_PAYLOAD)),
    "deep JSON over the limit": (DEEP, "too_large", str(len(DEEP))),
    "deep JSON": (b'{"a":' * 800, "bad_request", "JSON"),
    "max_tokens over the limit": (b'{"prompt":"a","max_tokens":5000}', "bad_request", "`max_tokens`"),
    "unknown model": (b'{"prompt":"a","model":"gpt"}', "unknown_model", "`model`"),
    "reply_to with a wildcard": (b'{"prompt":"a","reply_to":"reply/#"}', "bad_request", "`reply_to`"),
    "reply_to to the broker": (b'{"prompt":"a","reply_to":"$SYS/x"}', "bad_request", "`reply_to`"),
    "reply_to with U+0000": (b'{"prompt":"a","reply_to":"reply/a\\u0000"}', "bad_request", "`reply_to`"),
    "reply_to with U+FFFF": (b'{"prompt":"a","reply_to":"reply/a\\uffff"}', "bad_request", "`reply_to`"),
    "reply_to an input": (b'{"prompt":"a","reply_to":"edged/v1/refuser/req/x"}', "bad_request", "`reply_to`"),
    "reply_to elsewhere": (b'{"prompt":"a","reply_to":"elsewhere"}', "bad_request", "`reply_to`"),
    "reply_to empty": (b'{"prompt":"a","reply_to":""}', "bad_request", "`reply_to`"),
    "reply_to too long": (
        json.dumps({"prompt": "a", "reply_to": "reply/" + "x" * 512}).encode(),
        "bad_request",
        "`reply_to`",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_code_and_the_field(node: ScriptedNode, listener: Listener, case: str) -> None:
    payload, code, names = REFUSED[case]

    listener.publish(f"{node.base}/req/case", payload)

    final = listener.final("case", topic=f"{node.base}/reply/case")
    assert (final["gen"], final["seq"], final["finish_reason"]) == (0, 0, "error")
    assert final["error"]["code"] == code
    assert names in final["error"]["message"]
    assert final["error"]["retryable"] is False
    assert len(listener.stream("case")) == 1
    assert_serves(node, listener)


def test_200_000_deep_json_is_refused_where_the_limit_lets_it_in(broker: Broker, start_scripted: StartScripted) -> None:
    node = start_scripted(broker, answer=echo, limits={"max_payload": 4_000_000})
    with Listener(node.host, node.port, f"{node.base}/reply/#") as listener:
        listener.publish(f"{node.base}/req/deep", DEEP)

        error = listener.final("deep")["error"]

        assert error["code"] == "bad_request"
        assert "JSON" in error["message"]
        assert_serves(node, listener)


def test_undecodable_requests_are_told_on_events_too(node: ScriptedNode, listener: Listener) -> None:
    listener.publish(f"{node.base}/req", b"\xff")

    event = listener.wait(lambda m: m.topic == f"{node.base}/events").json()

    assert event["type"] == "refused"
    assert event["topic"] == f"{node.base}/req"
    assert event["error"]["code"] == "bad_request"
    made = listener.final(event["id"], topic=f"{node.base}/reply/{event['id']}")
    assert made["error"] == event["error"]


@pytest.mark.parametrize("path", ["bad id", "a/b/c", "/", "x" * 65])
def test_bad_path_is_answered_where_the_rule_says(node: ScriptedNode, listener: Listener, path: str) -> None:
    listener.publish(f"{node.base}/req/{path}", "hello")

    reply = listener.wait(lambda m: m.topic == f"{node.base}/reply/{path}").json()

    assert reply["error"]["code"] == "bad_request"
    assert "PATH" in reply["error"]["message"]
    assert listener.wait(lambda m: m.topic == f"{node.base}/events").json()["id"] == reply["id"]


@pytest.mark.parametrize("topic", ["elsewhere", "edged/v1/refuser/ask/x", "edged/v1/refuser/ctl/x"])
def test_forbidden_response_topic(node: ScriptedNode, listener: Listener, topic: str) -> None:
    listener.publish(f"{node.base}/req/rt", "hello", ResponseTopic=topic, CorrelationData=b"c")

    received = listener.wait(lambda m: m.topic == f"{node.base}/reply/rt")

    assert received.json()["error"]["code"] == "bad_request"
    assert "Response Topic" in received.json()["error"]["message"]
    assert received.properties["CorrelationData"] == b"c"


def test_refusals_follow_the_response_topic_where_it_is_allowed(node: ScriptedNode, listener: Listener) -> None:
    listener.publish(f"{node.base}/req/rt2", "{", ResponseTopic="reply/mine")

    assert listener.final("rt2", topic="reply/mine")["error"]["code"] == "bad_request"


@pytest.mark.parametrize("live", [True, False])
def test_retained_requests_are_ignored_and_told(broker: Broker, start_scripted: StartScripted, *, live: bool) -> None:
    """Before and after the subscription; a broker that restarts must not replay prompts."""
    node = start_scripted(broker, answer=echo)
    topic = f"{node.base}/req/kept"
    with Listener(broker.host, broker.port, f"{node.base}/reply/#", f"{node.base}/events") as listener:
        if not live:
            node.stop()
            listener.publish(topic, "hello", retain=True)
            node = start_scripted(broker, answer=echo, name=node.name)
        else:
            listener.publish(topic, "hello", retain=True)
        event = listener.wait(lambda m: m.topic.endswith("/events")).json()
        listener.publish(topic, b"", retain=True)

        assert (event["type"], event["topic"]) == ("ignored", topic)
        assert_serves(node, listener)
        assert listener.stream("kept") == []


def test_full_queue(broker: Broker, start_scripted: StartScripted) -> None:
    node = start_scripted(broker, models=({"parallel": 1},), limits={"max_queue": 2})
    with Listener(node.host, node.port, f"{node.base}/reply/#") as listener:
        for i in range(5):
            listener.publish(f"{node.base}/req/q{i}", "hello")

        refused = [listener.final("q3"), listener.final("q4")]

        assert [f["error"]["code"] for f in refused] == ["overloaded", "overloaded"]
        assert all(f["error"]["retryable"] and f["error"]["retry_after_ms"] >= 1 for f in refused)
        assert [listener.first(f"q{i}")["queue_position"] for i in range(3)] == [0, 1, 2]
        for _ in range(3):
            [uid] = node.engine.wait_for(1)
            node.engine.say(uid, "done")
            node.engine.finish(uid)
        assert [listener.final(f"q{i}")["text"] for i in range(3)] == ["done"] * 3


def test_a_clients_share_leaves_room_for_others(broker: Broker, start_scripted: StartScripted) -> None:
    node = start_scripted(broker, models=({"parallel": 1},), limits={"max_queue": 4, "max_queue_per_client": 2})
    with Listener(node.host, node.port, f"{node.base}/reply/#") as listener:
        for i in range(4):
            listener.publish(f"{node.base}/req/greedy/g{i}", "hello")
        listener.publish(f"{node.base}/req/modest/m", "hello")

        assert listener.final("g3")["error"]["code"] == "overloaded"
        accepted: dict[str, Any] = listener.wait(lambda m: m.topic.endswith("modest/m")).json()
        assert accepted["type"] == "accepted"
