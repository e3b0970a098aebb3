from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edged.wire import (
    PROTOCOL,
    Accepted,
    Chunk,
    Error,
    ErrorCode,
    Final,
    ModelCard,
    Progress,
    Queue,
    Reasoning,
    Reply,
    Status,
    ToolCall,
    Unknown,
    WireError,
    parse_reply,
    parse_status,
)
from tests.wire.strategies import json_values
from tests.wire.streams import accepted, chunk, final, progress, reasoning, refused, tool_call

EVERY_TYPE: list[Reply] = [
    accepted(),
    progress(1),
    chunk(2, "Bär 🐻\n\u2028"),
    reasoning(3, "hm"),
    tool_call(4),
    final(5, "Bär", include=True),
    refused(),
]

#: The example of docs/protocol.md, section 4.
DOCUMENTED_FINAL: dict[str, Any] = {
    "type": "final",
    "id": "k1",
    "gen": 1,
    "seq": 23,
    "ts": 1795226000.123,
    "finish_reason": "stop",
    "text": "…",
    "chars": 412,
    "crc32": 3735928559,
    "node": "pi-kitchen",
    "model": "starter",
    "seed": 42,
    "usage": {"prompt_tokens": 57, "cached_tokens": 32, "completion_tokens": 96, "reasoning_tokens": 0},
    "metrics": {
        "queue_time_ms": 1.2,
        "time_to_first_token_ms": 143.0,
        "prefill_time_ms": 120.4,
        "generation_time_ms": 1480.2,
        "e2e_time_ms": 1624.9,
        "tokens_per_second": 64.2,
        "prompt_tokens_per_second": 210.3,
        "mean_itl_ms": 15.5,
        "p95_itl_ms": 17.9,
        "max_itl_ms": 22.0,
        "mean_batch_size": 1.8,
        "preemptions": 0,
        "resumed": 0,
    },
}

#: The table of docs/protocol.md, section 4.
DOCUMENTED_CODES = {
    400: {"bad_request"},
    404: {"unknown_request", "unknown_model", "unknown_preset"},
    408: {"timeout"},
    409: {"id_conflict"},
    413: {"too_large", "context_overflow"},
    429: {"overloaded"},
    500: {"internal"},
    503: {"draining", "loading", "unavailable", "out_of_memory"},
    507: {"crashed"},
}


def wire(**fields: Any) -> bytes:
    return json.dumps(
        {"type": "chunk", "id": "k1", "gen": 1, "seq": 0, "ts": 1.5, "text": "x", "n": 1} | fields
    ).encode()


@pytest.mark.parametrize("message", EVERY_TYPE, ids=lambda message: message.type)
def test_what_the_daemon_writes_the_consumer_reads(message: Reply) -> None:
    assert parse_reply(message.payload()) == message
    assert parse_reply(message.payload().decode()) == message


def test_a_payload_is_compact_utf8_without_absent_fields() -> None:
    assert chunk(2, "Bär 🐻").payload() == (
        '{"id":"k1","gen":1,"seq":2,"ts":1795226002.0,"type":"chunk","text":"Bär 🐻","n":1}'.encode()
    )
    assert b"null" not in refused().payload()


def test_the_documented_final_is_what_the_daemon_writes() -> None:
    parsed = parse_reply(json.dumps(DOCUMENTED_FINAL))
    assert isinstance(parsed, Final)
    assert json.loads(parsed.payload()) == DOCUMENTED_FINAL


def test_unknown_fields_are_passed_over() -> None:
    assert parse_reply(wire(colour="red", logprobs=[1])) == parse_reply(wire())


def test_an_unknown_type_keeps_its_place_in_the_sequence() -> None:
    parsed = parse_reply(wire(type="citation", seq=7, url="x"))
    assert parsed == Unknown(id="k1", gen=1, seq=7, ts=1.5, type="citation")


@pytest.mark.parametrize("type_", ["accepted", "progress", "chunk", "reasoning", "tool_call", "final"])
def test_a_known_type_must_have_its_fields(type_: str) -> None:
    with pytest.raises(WireError, match=rf"{type_}\.\w+: Field required"):
        parse_reply(json.dumps({"type": type_, "id": "k1", "gen": 1, "seq": 0, "ts": 1}))


@pytest.mark.parametrize("field", ["id", "gen", "seq", "ts", "type"])
def test_every_message_must_carry_the_envelope(field: str) -> None:
    fields = json.loads(wire())
    del fields[field]
    with pytest.raises(WireError, match=f"{field}: Field required"):
        parse_reply(json.dumps(fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [("seq", -1), ("seq", 2**53), ("gen", -1), ("gen", 2**53), ("seq", 1.5), ("seq", "x"), ("n", -1), ("text", None)],
)
def test_values_outside_the_contract_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(WireError, match=field):
        parse_reply(wire(**{field: value}))


def test_the_largest_numbers_are_what_every_json_parser_reads_exactly() -> None:
    parsed = parse_reply(wire(seq=2**53 - 1, gen=2**53 - 1))
    assert (parsed.gen, parsed.seq) == (2**53 - 1, 2**53 - 1)


@pytest.mark.parametrize(
    "payload", [b"", b"hello", b"[]", b"null", b"{", b"\xff", b'{"type":', b'{"a":' * 200_000, b"[" * 200_000]
)
def test_what_is_no_json_object_is_a_wire_error(payload: bytes) -> None:
    with pytest.raises(WireError, match=r"not a message of a reply stream: [A-Z]"):
        parse_reply(payload)


@given(payload=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_other_bytes_are_a_wire_error(payload: bytes) -> None:
    for parse in (parse_reply, parse_status):
        with pytest.raises(WireError):
            parse(payload)


@given(fields=st.dictionaries(st.sampled_from(["type", "id", "gen", "seq", "ts", "text", "n"]), json_values))
def test_any_json_object_is_a_message_or_a_wire_error(fields: dict[str, Any]) -> None:
    try:
        parsed = parse_reply(wire(**fields))
    except WireError:
        return
    assert isinstance(parsed, Accepted | Progress | Chunk | Reasoning | ToolCall | Final | Unknown)


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        chunk(0, "x").text = "y"  # type: ignore[misc]  # mypy knows it too


def test_every_error_code_has_the_status_of_the_contract() -> None:
    by_status: dict[int, set[str]] = {}
    for code in ErrorCode:
        by_status.setdefault(code.status, set()).add(code.value)
    assert by_status == DOCUMENTED_CODES


def test_retryable_is_what_may_pass_by_itself() -> None:
    retryable = {code for code in ErrorCode if code.retryable}
    assert retryable == {code for code in ErrorCode if code.status in {408, 429, 500, 503}}


def test_an_error_fills_in_what_follows_from_its_code() -> None:
    error = Error.of(ErrorCode.OVERLOADED, "the queue is full", retry_after_ms=1500)
    assert (error.status, error.retryable, error.retry_after_ms) == (429, True, 1500)


# --- the status card ------------------------------------------------------------------------------------------------

CARD = Status(
    state="online",
    node="pi-kitchen",
    boot=7,
    version="0.1.0",
    models=[ModelCard(alias="starter", file="s.gguf", context=4096, parallel=8)],
    queue=Queue(running=1, waiting=0, capacity=256),
    limits={"max_tokens": 4096},
    since=1795226000.5,
)


def test_the_status_card_reads_back_and_says_the_protocol() -> None:
    assert parse_status(CARD.payload()) == CARD
    assert json.loads(CARD.payload())["protocol"] == PROTOCOL == 1


def test_the_status_card_may_grow() -> None:
    assert parse_status(json.dumps(json.loads(CARD.payload()) | {"mood": "good"})) == CARD


def test_a_broken_status_card_is_a_wire_error_that_names_the_field() -> None:
    with pytest.raises(WireError, match="not a status card: state: "):
        parse_status(json.dumps(json.loads(CARD.payload()) | {"state": "happy"}))
    with pytest.raises(WireError, match="not a status card: Invalid JSON"):
        parse_status(b"")
