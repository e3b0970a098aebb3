from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from edged.wire import Error, ErrorCode, Event, ModelCard, Queue, Request, RequestError, Status, parse_request
from edged.wire.messages import Metrics, NodeMetrics
from edged.wire.schema import main, rendered, schemas
from tests.wire.streams import accepted, chunk, final, progress, reasoning, refused, tool_call, unknown

CHECKED_IN = Path(__file__).parents[2] / "docs" / "schema"
SCHEMAS = schemas()
VALIDATORS = {name: Draft202012Validator(schema) for name, schema in SCHEMAS.items()}

METRICS = Metrics(
    queue_time_ms=1.2,
    time_to_first_token_ms=143.0,
    prefill_time_ms=120.4,
    generation_time_ms=1480.2,
    e2e_time_ms=1624.9,
    tokens_per_second=64.2,
    prompt_tokens_per_second=210.3,
    mean_batch_size=1.8,
)
FULL_FINAL = final(9, "Bär", include=True).model_copy(update={"metrics": METRICS, "metadata": {"room": "kitchen"}})
CARD = Status(
    state="online",
    node="pi",
    boot=7,
    version="0.1.0",
    models=[ModelCard(alias="starter", file="s.gguf", context=4096, parallel=8)],
    queue=Queue(running=1, waiting=0, capacity=256),
    tokens_per_second=12.5,
    limits={"max_tokens": 4096, "timeout_s": 600.5},
    since=1795226000.5,
)
WILL = Status(state="lost", node="pi", boot=7, version="0.1.0", since=1795226000.5)
FIGURES = NodeMetrics(
    ts=1795226000.5,
    node="pi",
    boot=7,
    uptime_s=3.5,
    running=1,
    waiting=0,
    tokens_per_second=12.5,
    accepted=3,
    finished={"stop": 2},
    refused={"overloaded": 1},
    ignored_retained=0,
    prompt_tokens=100,
    completion_tokens=200,
    engine_restarts=0,
    reconnects=1,
    outbox=0,
)
EVENT = Event(
    type="refused", ts=1.0, node="pi", topic="edged/v1/pi/req", error=Error.of(ErrorCode.BAD_REQUEST, "not UTF-8")
)

#: Every message that the daemon may say, by the schema it is to satisfy.
SAID: list[tuple[str, BaseModel]] = [
    ("accepted", accepted()),
    ("accepted", accepted().model_copy(update={"metadata": {"room": "kitchen"}})),
    ("progress", progress(1)),
    ("chunk", chunk(1, "Bär 🐻")),
    ("reasoning", reasoning(1, "hm")),
    ("tool_call", tool_call(1)),
    ("final", final(9, "Bär")),
    ("final", FULL_FINAL),
    ("final", final(9, "", finish_reason="error")),
    ("final", refused()),
    ("status", CARD),
    ("status", WILL),
    ("metrics", FIGURES),
    ("event", EVENT),
]
REPLIES = {"accepted", "progress", "chunk", "reasoning", "tool_call", "final"}


def valid(name: str, instance: object) -> bool:
    return VALIDATORS[name].is_valid(instance)


def test_the_checked_in_schemas_are_the_generated_ones() -> None:
    """If this fails: `python -m edged.wire.schema docs/schema`, and look at what changed in the contract."""
    checked_in = {path.name: path.read_text(encoding="utf-8") for path in CHECKED_IN.iterdir()}
    assert checked_in == rendered()


def test_the_command_writes_the_schemas(tmp_path: Path) -> None:
    directory = tmp_path / "docs" / "schema"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "edged.wire.schema", str(directory)], check=True, capture_output=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    assert {path.name: path.read_text(encoding="utf-8") for path in directory.iterdir()} == rendered()


def test_the_command_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: " in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_schema_is_draft_2020_12_with_a_name_of_its_own(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMAS[name]["$id"] == f"urn:edged:v1:{name}"


def test_there_is_a_schema_of_every_message() -> None:
    said = {name for name, _ in SAID}
    assert set(SCHEMAS) == said | {"request", "control", "reply", "error", "error_code"}


@pytest.mark.parametrize(("name", "message"), SAID)
def test_what_the_daemon_says_is_valid(name: str, message: BaseModel) -> None:
    instance = json.loads(message.model_dump_json(exclude_none=True))
    VALIDATORS[name].validate(instance)
    assert valid(name, instance | {"a_field_of_a_later_version": 1})
    assert valid("reply", instance) == (name in REPLIES)


@pytest.mark.parametrize(("name", "message"), SAID)
def test_a_schema_requires_exactly_what_is_always_said(name: str, message: BaseModel) -> None:
    instance = json.loads(message.model_dump_json(exclude_none=True))
    optional = {field for field, info in type(message).model_fields.items() if info.default is None}
    for field in instance:
        without = {key: value for key, value in instance.items() if key != field}
        assert valid(name, without) == (field in optional)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("chunk", {"text": 1}),
        ("chunk", {"seq": -1}),
        ("chunk", {"seq": 1.5}),
        ("chunk", {"gen": 2**53}),
        ("chunk", {"type": "accepted"}),
        ("chunk", {"text": None}),
        ("final", {"crc32": 2**32}),
        ("final", {"finish_reason": "bored"}),
        ("final", {"error": {"code": "bad_request", "status": 500, "message": "x", "retryable": False}}),
        ("final", {"error": {"code": "bad_request", "status": 400, "message": "x", "retryable": True}}),
        ("final", {"error": {"code": "bad_luck", "status": 400, "message": "x", "retryable": False}}),
        ("final", {"usage": {"prompt_tokens": 1}}),
        ("status", {"state": "happy"}),
        ("status", {"models": [{}]}),
        ("progress", {"phase": "thinking"}),
        ("tool_call", {"arguments": "{}"}),
        ("event", {"error": None}),
    ],
)
def test_what_the_contract_does_not_have_is_invalid(name: str, change: dict[str, Any]) -> None:
    instance = json.loads(next(m for n, m in SAID if n == name).model_dump_json(exclude_none=True))
    assert valid(name, instance)
    assert not valid(name, instance | change)
    if name in REPLIES:
        assert not valid("reply", instance | change)


def test_a_message_of_an_unknown_type_is_no_reply_of_this_version() -> None:
    assert not valid("reply", json.loads(unknown(1).payload()))


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_is_valid_with_what_follows_from_it(code: ErrorCode) -> None:
    assert valid("error_code", code.value)
    assert valid("error", Error.of(code, "x").model_dump(mode="json", exclude_none=True))


def test_other_error_codes_are_invalid() -> None:
    assert not valid("error_code", "bad_luck")


# --- what consumers send --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "x"},
        {"prompt": "x", "system": "y", "max_tokens": 5, "stop": ["a"], "metadata": {"room": "kitchen"}},
        {"prompt": "x", "raw": True},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": ""}], "prompt": None, "system": None, "raw": False},
    ],
)
def test_good_requests_are_valid(request_: dict[str, Any]) -> None:
    VALIDATORS["request"].validate(request_)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        "hello",
        {"prompt": "x", "tempreature": 1},
        {"prompt": "x", "tools": []},
        {"prompt": "x", "max_tokens": "1"},
        {"prompt": "x", "id": "a b"},
        {"prompt": ""},
        {"prompt": "x", "messages": [{"role": "user", "content": ""}]},
        {"prompt": "x", "messages": [{"role": "user", "content": ""}], "raw": True},
        {"prompt": "x", "messages": [{"role": "user", "content": ""}], "system": "x"},
        {"prompt": "x", "system": "y", "raw": True},
        {"messages": [{"role": "user", "content": ""}], "system": "x"},
        {"messages": [{"role": "user", "content": ""}], "raw": True},
        {"messages": [{"role": "robot", "content": ""}]},
        {"messages": [{"role": "user", "content": "", "name": "x"}]},
    ],
)
def test_bad_requests_are_invalid(request_: object) -> None:
    assert not valid("request", request_)


_values = (
    st.none()
    | st.booleans()
    | st.integers(-3, 20)
    | st.sampled_from([2**31, 2**32 - 1, 2**32 - 2, 10**9 + 1])
    | st.floats(-3, 11).filter(
        lambda x: not x.is_integer()
    )  # JSON Schema takes 1.0 for an integer, the daemon does not
    | st.sampled_from(["", "x", "a b", "x" * 65, "x" * 257, "low", "user"])
    | st.lists(st.sampled_from(["", "x", 1]), max_size=17)
    | st.dictionaries(st.sampled_from(["role", "content", "a", ""]), st.sampled_from(["user", "x", 1]), max_size=3)
    | st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "robot"]), "content": st.text(max_size=2)}))
)


@given(
    request_=st.dictionaries(
        st.sampled_from([*Request.model_fields, "prompt", "messages", "raw", "system", "preset", "x"]),
        _values,
        max_size=4,
    ),
    start=st.sampled_from([{}, {"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}]),
)
def test_the_schema_of_requests_says_what_the_daemon_does(request_: dict[str, Any], start: dict[str, Any]) -> None:
    instance = start | request_
    try:
        parse_request(json.dumps(instance).encode(), max_bytes=10**6)
    except RequestError:
        assert not valid("request", instance)
    else:
        assert valid("request", instance)


def test_control_is_an_operation_and_nothing_else() -> None:
    assert valid("control", {"op": "cancel"})
    for bad in ({}, {"op": "explode"}, {"op": "cancel", "x": 1}, "cancel"):
        assert not valid("control", bad)
