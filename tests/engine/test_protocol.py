"""What the daemon and its engine say to each other arrives as it was, or is refused as nonsense."""

from __future__ import annotations

import contextlib
import json
import struct
from dataclasses import asdict, replace
from types import NoneType
from typing import Any, TypeAlias

import pytest
from annotated_types import Le
from hypothesis import given
from hypothesis import strategies as st

from edged.config.settings import Limits
from edged.engine.protocol import (
    LEVELS,
    MAX_FRAME,
    Cancel,
    Decoder,
    Failed,
    Finished,
    Generate,
    Hold,
    Load,
    Loading,
    Note,
    Order,
    ProtocolError,
    Ready,
    Release,
    Report,
    Step,
    encode,
)
from tests.engine.handles import generate

Message: TypeAlias = Order | Report

_whole, _size, _some = st.integers(0, 2**63), st.integers(0, 2**31), st.integers(1, 2**31)
_real = st.floats(allow_nan=False, allow_infinity=False)
_finished = st.builds(
    Finished,
    uid=_whole,
    reason=st.text(),
    prompt_tokens=_size,
    cached_tokens=_size,
    completion_tokens=_size,
    timings=st.dictionaries(st.text(), _real, max_size=3),
    error=st.text(),
    message=st.text(),
)
_step = st.builds(
    Step,
    deltas=st.lists(st.tuples(_whole, st.text(), st.lists(_whole, max_size=3)), max_size=4),
    prefill=st.lists(st.tuples(_whole, _size, _size), max_size=4),
    finished=st.lists(_finished, max_size=3),
)
_generate = st.builds(
    Generate,
    uid=_whole,
    max_tokens=_size,
    temperature=_real,
    top_p=_real,
    top_k=_size,
    min_p=_real,
    seed=_size,
    repeat_penalty=_real,
    presence_penalty=_real,
    frequency_penalty=_real,
    stop=st.lists(st.text(), max_size=3),
    messages=st.none() | st.lists(st.tuples(st.text(), st.text()), max_size=3),
    prompt=st.none() | st.text(),
    progress=st.booleans(),
)
#: A path may have bytes that are no UTF-8, which Python keeps as lone surrogates (PEP 383).
_paths = st.text(st.characters(exclude_categories=[]))
_load = st.builds(
    Load,
    path=_paths,
    context=_size,
    parallel=_size,
    threads=_size,
    gpu_layers=_size,
    yield_threads=st.booleans(),
    itl_target_ms=_real,
    digest=st.text(),
)
_ready = st.builds(
    Ready, context=_some, parallel=_some, threads=_some, parameters=_whole, quantisation=st.text(), digest=st.text()
)
_messages: st.SearchStrategy[Message] = st.one_of(
    _load,
    _generate,
    st.builds(Cancel, _whole),
    st.builds(Hold, _whole),
    st.builds(Release, _whole),
    st.builds(Loading, _real),
    _ready,
    st.builds(Failed, st.text()),
    _step,
    st.builds(Note, st.sampled_from(LEVELS), st.text()),
)
FINISHED = Finished(uid=1, reason="stop", timings={"prefill_time_ms": 1.5})
STEP = Step(deltas=[(1, "ü", [2, 7])], prefill=[(3, 4, 5)], finished=[FINISHED])


READY = (
    b'{"op":"ready","context":4096,"parallel":8,"threads":2,"parameters":135,"quantisation":"","digest":"sha256:5e"}'
)


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


@given(st.lists(_messages, max_size=4), st.data())
def test_messages_arrive_as_they_were_however_the_stream_is_torn(messages: list[Message], data: st.DataObject) -> None:
    raw = b"".join(map(encode, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    decoder, arrived = Decoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        arrived += decoder.feed(raw[start:end])
    assert arrived == messages


def test_a_frame_cut_anywhere_is_no_message_until_the_rest_has_come() -> None:
    raw = encode(STEP)
    for cut in range(1, len(raw)):
        decoder = Decoder()
        assert decoder.feed(raw[:cut]) == []
        assert decoder.feed(raw[cut:]) == [STEP]


def test_tuples_arrive_as_tuples() -> None:
    [step] = Decoder().feed(encode(STEP))
    assert isinstance(step, Step)
    assert [type(one) for one in (*step.deltas, *step.prefill)] == [tuple, tuple]


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_random_bytes_are_refused_or_wait_for_more(pieces: list[bytes]) -> None:
    decoder = Decoder()
    with contextlib.suppress(ProtocolError):
        assert [message for piece in pieces for message in decoder.feed(piece)] == []


@given(st.binary(max_size=200))
def test_a_frame_of_random_bytes_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"a frame of {len(body)} bytes that is no message"):
        Decoder().feed(frame(body))


_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(_messages, _json, st.data())
def test_a_value_of_another_type_never_gets_through(message: Message, value: Any, data: st.DataObject) -> None:
    """Whatever stands in a field: either it is refused, or it arrives with the type that the field has."""
    fields = asdict(message)
    name = data.draw(st.sampled_from(sorted(fields)))
    body = json.dumps({"op": message.op, **fields, name: value}).encode()
    try:
        [arrived] = Decoder().feed(frame(body))
    except ProtocolError:
        return
    due = {"messages": (list, NoneType), "prompt": (str, NoneType)}.get(name, (type(getattr(message, name)),))
    assert type(getattr(arrived, name)) in due
    assert replace(arrived, **{name: getattr(message, name)}) == message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("deltas", 5),
        ("deltas", None),
        ("deltas", [[1, "text"]]),
        ("deltas", [[1, "text", [1], 1]]),
        ("deltas", [["1", "text", [1]]]),
        ("deltas", [[True, "text", [1]]]),
        ("deltas", [[1, 2, [3]]]),
        ("deltas", [[1, "text", 3]]),
        ("deltas", [[1, "text", ["3"]]]),
        ("deltas", {"uid": 1}),
        ("prefill", [[1, 2.5, 3]]),
        ("finished", [5]),
        ("finished", [{"uid": 1}]),
        ("finished", [{**asdict(FINISHED), "timings": {"x": "fast"}}]),
        ("finished", [{**asdict(FINISHED), "timings": {"x": float("nan")}}]),
        ("finished", [{**asdict(FINISHED), "timings": {"x": 10**400}}]),
        ("finished", [{**asdict(FINISHED), "extra": 1}]),
    ],
)
def test_a_step_with_a_wrong_value_is_refused(field: str, value: Any) -> None:
    body = json.dumps({"op": "step", **asdict(STEP), field: value}).encode()
    with pytest.raises(ProtocolError):
        Decoder().feed(frame(body))


def test_a_number_without_a_point_is_a_float_where_one_is_due() -> None:
    [loading] = Decoder().feed(frame(b'{"op":"loading","fraction":1}'))
    assert loading == Loading(1.0)
    assert isinstance(loading, Loading)
    assert isinstance(loading.fraction, float)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"step"',
        b'{"op":"dance"}',
        b'{"op":["step"]}',
        b'{"op":"cancel"}',
        b'{"op":"cancel","uid":1,"why":"so"}',
        b'{"op":"hold"}',
        b'{"op":"release","uid":"1"}',
        b'{"op":"loading","fraction":Infinity}',
        b'{"op":"failed","message":"\xff"}',
        b'{"op":"note","level":"fatal","text":"x"}',
        READY.replace(b"4096", b"0"),
        READY.replace(b"8", b"-8"),
        READY.replace(b"135", b"-1"),
        b"[" * 200_000,
        b'{"op":"cancel","uid":' + b"9" * 10_000 + b"}",
    ],
    ids=lambda body: body[:24].decode(errors="replace"),
)
def test_a_frame_that_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"a frame of {len(body)} bytes that is no message"):
        Decoder().feed(frame(body))


def test_a_refusal_does_not_quote_the_frame_which_may_be_someones_text() -> None:
    body = json.dumps({"op": "note", "text": "a secret " * 1000, "level": 1}).encode() + b"\xff"
    with pytest.raises(ProtocolError) as refusal:
        Decoder().feed(frame(body))
    assert "secret" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_what_is_changed_there_is_a_message_otherwise() -> None:
    assert Decoder().feed(frame(READY)) == [Ready(4096, 8, 2, 135, "", "sha256:5e")]


def test_the_longest_request_that_may_be_allowed_is_no_frame_that_is_too_long() -> None:
    [bound] = (one.le for one in Limits.model_fields["max_payload"].metadata if isinstance(one, Le))
    assert isinstance(bound, int)
    order = replace(generate(1, "\x01" * bound), owner="o" * 65_535, generated=list(range(10**6)))
    assert len(encode(order)) < MAX_FRAME


def test_a_frame_that_is_too_long_is_refused_before_it_has_come() -> None:
    with pytest.raises(ProtocolError, match=f"a frame of {MAX_FRAME + 1} bytes; at most {MAX_FRAME}"):
        Decoder().feed(struct.pack("<I", MAX_FRAME + 1))


def test_the_longest_frame_is_waited_for() -> None:
    decoder = Decoder()
    assert decoder.feed(struct.pack("<I", MAX_FRAME)) == []
