from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edged.wire import ErrorCode, Message, Request, RequestError, parse_control, parse_request
from edged.wire.request import MAX_MESSAGES, MAX_SEED, NOT_YET
from tests.wire.strategies import json_values

MAX = 100_000
HELLO = [{"role": "user", "content": "hello"}]


def request(**fields: Any) -> Request:
    return parse_request(json.dumps({"prompt": "hello"} | fields).encode(), max_bytes=MAX)


def refusal(payload: bytes | dict[str, Any], *, max_bytes: int = MAX) -> RequestError:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    with pytest.raises(RequestError) as caught:
        parse_request(raw, max_bytes=max_bytes)
    return caught.value


# --- plain text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Why is the sky blue?", " ", "[1]", '"{}"', "null", "x {", "ein Bär 🐻", "a\r\nb\n"])
def test_text_that_does_not_start_with_a_brace_is_the_prompt(text: str) -> None:
    assert parse_request(text.encode(), max_bytes=MAX) == Request(prompt=text)


@given(text=st.text(min_size=1))
def test_any_other_text_is_the_prompt_as_it_stands(text: str) -> None:
    assume(not text.lstrip().startswith("{") and not text.startswith("\ufeff"))
    assert parse_request(text.encode(), max_bytes=MAX).prompt == text


def test_a_byte_order_mark_is_no_part_of_the_prompt() -> None:
    assert parse_request(b"\xef\xbb\xbfhello", max_bytes=MAX).prompt == "hello"
    assert parse_request(b'\xef\xbb\xbf{"prompt":"hello"}', max_bytes=MAX).prompt == "hello"


@pytest.mark.parametrize("payload", [b"", b"\xef\xbb\xbf"])
def test_an_empty_payload_is_refused(payload: bytes) -> None:
    assert "empty" in refusal(payload).message


# --- what cannot be read at all -------------------------------------------------------------------------------------


def test_a_payload_that_is_not_utf8_is_refused_with_the_byte_and_its_place() -> None:
    error = refusal(b"abc\xff")
    assert (error.code, error.decoded) == (ErrorCode.BAD_REQUEST, False)
    assert "0xff at offset 3" in error.message


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        b" \r\n\t{",
        b"{]",
        b"{'prompt': 'x'}",
        b'{"prompt":"x"} x',
        b'{"prompt":"x",}',
        b'{"prompt":"\\ud800"}',
        b'{"prompt":"\x00"}',
        b'{"seed":' + b"9" * 5000 + b"}",
        "\u00a0{".encode(),
    ],
)
def test_a_payload_that_starts_with_a_brace_is_an_error_unless_it_parses(payload: bytes) -> None:
    error = refusal(payload)
    assert (error.code, error.field, error.decoded) == (ErrorCode.BAD_REQUEST, None, False)
    assert "starts with { but is no JSON object" in error.message


@pytest.mark.parametrize("opening", [b'{"a":', b'{"messages":[{"role":'])
def test_json_of_any_depth_is_refused_not_followed(opening: bytes) -> None:
    error = refusal(opening * 200_000, max_bytes=10**7)
    assert (error.code, error.decoded) == (ErrorCode.BAD_REQUEST, False)
    assert "recursion limit" in error.message
    assert "recursion limit" in refusal(b'{"a":' + b"[" * 200_000, max_bytes=10**7).message


def test_a_payload_over_the_limit_is_refused_with_both_sizes() -> None:
    error = refusal(b"x" * 11, max_bytes=10)
    assert error.code == ErrorCode.TOO_LARGE
    assert "11 bytes" in error.message
    assert "at most 10" in error.message
    assert parse_request(b"x" * 10, max_bytes=10).prompt == "x" * 10


# --- fields ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "a"),
        ("id", "A-z_0.9" + "x" * 57),
        ("max_tokens", 1),
        ("max_tokens", 2**31 - 1),
        ("temperature", 0),
        ("temperature", 5.0),
        ("top_p", 0.001),
        ("top_p", 1),
        ("top_k", 0),
        ("min_p", 0),
        ("min_p", 1),
        ("seed", 0),
        ("seed", MAX_SEED),
        ("stop", "x" * 256),
        ("stop", ["x"] * 16),
        ("stop", []),
        ("repeat_penalty", 10),
        ("presence_penalty", -2),
        ("presence_penalty", 2),
        ("frequency_penalty", -2),
        ("frequency_penalty", 2),
        ("model", "x" * 64),
        ("priority", "low"),
        ("priority", "high"),
        ("timeout_s", 0.001),
        ("timeout_s", 10**9),
        ("stream", False),
        ("progress", True),
        ("include_text", False),
        ("reply_to", "anything: checked against the operator's list later"),
        ("metadata", {"x" * 64: "y" * 256}),
        ("metadata", {str(i): "" for i in range(16)}),
        ("metadata", {}),
        ("system", ""),
        ("raw", True),
    ],
)
def test_fields_are_accepted_up_to_their_bounds(field: str, value: object) -> None:
    assert getattr(request(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "x" * 65),
        ("id", "a/b"),
        ("id", "a b"),
        ("id", "é"),
        ("id", "a\n"),
        ("id", 1),
        ("prompt", ""),
        ("prompt", 1),
        ("prompt", ["x"]),
        ("system", 1),
        ("max_tokens", 0),
        ("max_tokens", 2**31),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", 1.0),
        ("max_tokens", "1"),
        ("max_tokens", True),
        ("max_tokens", 10**4000),
        ("temperature", -0.1),
        ("temperature", 5.1),
        ("temperature", "0"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", float("-inf")),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("top_k", 2**31),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("seed", float("nan")),
        ("stop", ""),
        ("stop", "x" * 257),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", ["x", 1]),
        ("stop", 1),
        ("repeat_penalty", 0),
        ("repeat_penalty", 10.1),
        ("presence_penalty", -2.1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", 2.1),
        ("model", ""),
        ("model", "x" * 65),
        ("model", 1),
        ("priority", "urgent"),
        ("priority", "LOW"),
        ("timeout_s", 0),
        ("timeout_s", -1),
        ("timeout_s", float("inf")),
        ("timeout_s", 10**9 + 1),
        ("timeout_s", "10"),
        ("stream", 0),
        ("stream", "false"),
        ("stream", None),
        ("progress", 1),
        ("include_text", "yes"),
        ("raw", 1),
        ("reply_to", 1),
        ("reply_to", ["a"]),
        ("metadata", []),
        ("metadata", {str(i): "" for i in range(17)}),
    ],
)
def test_fields_beyond_their_bounds_or_of_the_wrong_type_are_refused_by_name(field: str, value: object) -> None:
    error = refusal({"prompt": "hello", field: value})
    assert (error.code, error.field, error.decoded) == (ErrorCode.BAD_REQUEST, field, True)
    assert f"`{field}`" in error.message


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": HELLO * (MAX_MESSAGES + 1)}, "messages"),
        ({"messages": [*HELLO, {"role": "robot", "content": ""}]}, "messages.1.role"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages.0.name"),
        ({"prompt": "x", "metadata": {"": "x"}}, "metadata."),
        ({"prompt": "x", "metadata": {"room": 1}}, "metadata.room"),
        ({"prompt": "x", "metadata": {"x" * 65: "1"}}, "metadata." + "x" * 65),
        ({"prompt": "x", "metadata": {"room": "x" * 257}}, "metadata.room"),
    ],
)
def test_refusals_name_the_place_inside_a_field(fields: dict[str, Any], named: str) -> None:
    error = refusal(fields)
    assert error.field == named
    assert f"`{named}`" in error.message


def test_unknown_fields_are_refused_by_name() -> None:
    error = refusal({"prompt": "x", "tempreature": 1})
    assert (error.code, error.field) == (ErrorCode.BAD_REQUEST, "tempreature")
    assert error.message == "unknown field `tempreature`"


@pytest.mark.parametrize("field", sorted(NOT_YET))
def test_fields_of_the_contract_that_are_not_served_yet_are_refused_never_ignored(field: str) -> None:
    error = refusal({"prompt": "x", field: None})
    assert error.field == field
    assert error.message == f"`{field}` is not supported by this version"


def test_the_name_of_an_unknown_field_cannot_control_a_terminal_or_forge_a_line_of_the_log() -> None:
    message = refusal({"prompt": "x", "a\x1b[2J\nb" + "x" * 1000: 1}).message
    assert message.startswith(r"unknown field `a\x1b[2J\nbxxx")
    assert len(message) < 200


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "the request has neither"),
        ({"prompt": None}, "the request has neither"),
        ({"prompt": "x", "messages": HELLO}, "the request has both"),
        ({"messages": HELLO, "system": "x"}, "`system` goes with `prompt`"),
        ({"messages": HELLO, "raw": True}, "neither `messages` nor `system`"),
        ({"prompt": "x", "system": "x", "raw": True}, "neither `messages` nor `system`"),
    ],
)
def test_fields_that_exclude_each_other_are_refused_with_the_way_out(fields: dict[str, Any], why: str) -> None:
    error = refusal(fields)
    assert (error.code, error.field) == (ErrorCode.BAD_REQUEST, None)
    assert why in error.message


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "not 0"), (-1.5, "not -1.5"), (True, "not true"), (float("nan"), "not NaN")]
)
def test_a_refusal_shows_the_number_at_fault(value: float, shown: str) -> None:
    assert refusal({"prompt": "x", "max_tokens": value}).message.endswith(shown)


def test_a_refusal_shows_neither_a_long_number_whole_nor_any_text() -> None:
    assert len(refusal({"prompt": "x", "seed": 10**4000}).message) < 200
    assert "secret" not in refusal({"prompt": "secret", "system": ["secret"], "max_tokens": "secret"}).message


@pytest.mark.parametrize("broken", [{"max_tokens": 0}, {"nonsense": 1}, {"temperature": float("nan")}, {"prompt": ""}])
def test_a_refusal_keeps_what_is_legible_so_that_it_can_be_answered(broken: dict[str, Any]) -> None:
    error = refusal({"prompt": "x", "id": "k1", "reply_to": "reply/app"} | broken)
    assert (error.id, error.reply_to) == ("k1", "reply/app")


@pytest.mark.parametrize("bad", [{"id": "a b", "reply_to": 1}, {"id": 1, "reply_to": []}, {"id": None}])
def test_a_refusal_keeps_no_id_that_could_not_be_a_topic_level(bad: dict[str, Any]) -> None:
    error = refusal({"prompt": "x", "max_tokens": 0} | bad)
    assert (error.id, error.reply_to) == (None, None)


def test_null_means_absent_where_a_field_has_no_default_of_the_contract() -> None:
    assert request(id=None, max_tokens=None, messages=None, metadata=None) == Request(prompt="hello")


@given(payload=st.binary(max_size=200), start=st.sampled_from([b"", b"{", b'{"prompt":"']))
def test_any_bytes_are_a_request_or_a_request_error(payload: bytes, start: bytes) -> None:
    for error in errors_of(start + payload, max_bytes=150):
        assert error.code in {ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE}
        assert error.message


@given(
    fields=st.dictionaries(
        st.sampled_from([*Request.model_fields, *NOT_YET]) | st.text(max_size=5), json_values, max_size=5
    )
)
def test_any_json_object_is_a_request_or_a_request_error(fields: dict[str, Any]) -> None:
    for error in errors_of(json.dumps({"prompt": "x"} | fields).encode(), max_bytes=MAX):
        assert error.code == ErrorCode.BAD_REQUEST
        assert error.message.isprintable()


def errors_of(payload: bytes, *, max_bytes: int) -> list[RequestError]:
    errors = []
    for parse in (parse_request, parse_control):
        try:
            parse(payload, max_bytes=max_bytes)
        except RequestError as error:
            errors.append(error)
    return errors


# --- what a request says --------------------------------------------------------------------------------------------


def test_prompt_and_system_become_a_conversation() -> None:
    assert request().conversation == (Message(role="user", content="hello"),)
    assert request(system="Be brief.").conversation == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="hello"),
    )


def test_messages_are_the_conversation_as_they_stand() -> None:
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "tool")]
    parsed = request(prompt=None, messages=turns)
    assert [turn.model_dump() for turn in parsed.conversation] == turns


def test_one_stop_string_is_a_list_of_one() -> None:
    assert request().stops is None
    assert request(stop="END").stops == ("END",)
    assert request(stop=["a", "b"]).stops == ("a", "b")


# --- control --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"cancel", b" cancel\n", b'{"op":"cancel"}', b' {"op": "cancel"}\r\n'])
def test_control_is_a_bare_word_or_json(payload: bytes) -> None:
    assert parse_control(payload, max_bytes=MAX).op == "cancel"


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b"", "op"),
        (b"stop", "op"),
        (b"CANCEL", "op"),
        (b"{}", "op"),
        (b'{"op":1}', "op"),
        (b'{"op":"cancel","seq":1}', "seq"),
        (b"{", None),
        (b"\xff", None),
    ],
)
def test_control_that_is_not_understood_is_refused(payload: bytes, field: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        parse_control(payload, max_bytes=MAX)
    assert (caught.value.code, caught.value.field) == (ErrorCode.BAD_REQUEST, field)


@pytest.mark.parametrize("payload", [b"stop", b"{}", b'{"op":"stop"}', b'{"cancel":true}', b'{"op":"CANCEL"}'])
def test_control_that_names_no_operation_is_told_which_there_are(payload: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_control(payload, max_bytes=MAX)
    assert [word for word in ("`op`", "cancel", "pause", "resume", "replay") if word not in str(caught.value)] == []


def test_control_over_the_limit_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        parse_control(b" " * 100 + b"cancel", max_bytes=100)
    assert caught.value.code == ErrorCode.TOO_LARGE
