"""Strategies: PUBLISHes as a broker lets them pass, from sensible ones to nonsense."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from hypothesis import strategies as st

from edged.config import Settings
from tests.fuzz.decoders import TARGETS
from tests.wire.strategies import ids, json_values

_EDGE = Settings.model_fields["limits"].default_factory().max_payload  # type: ignore[misc, call-arg]  # pydantic's Any

#: What MQTT has no objection to, so that brokers pass it on: Mosquitto hangs up on the rest.
_text = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"], exclude_characters="+#/"), max_size=12)
#: Few, so that the same id comes again, and control messages find something.
_names = st.sampled_from(["a", "b", "c", "d", "e", "f", "ann", "bob", "k.1"])


@dataclass(frozen=True, slots=True)
class Message:
    """A PUBLISH. `alias` and all that follows exist in MQTT 5 only; `topic` is without the node's prefix."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    alias: int | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry: int | None = None
    content_type: str | None = None
    utf8: bool | None = None
    user: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        """What is given, in a line that can be read; a long one is mostly the same again and again."""
        given = [(one.name, getattr(self, one.name)) for one in fields(self) if getattr(self, one.name) != one.default]
        return f"Message({', '.join(f'{name}={_short(value)}' for name, value in given)})"


def _short(value: object) -> str:
    if isinstance(value, str | bytes) and len(value) > 500:
        return f"{value[:400]!r}… {len(value)} long, …{value[-40:]!r}"
    return repr(value)


def _long(unit: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """The same again and again, around the bounds."""
    sizes = st.sampled_from([100, 16 * 1024, 16 * 1024 + 1, _EDGE - 30, _EDGE - 1, _EDGE, _EDGE + 1])
    return st.builds(lambda one, size: one * (size // len(one)) + b"x" * (size % len(one)), unit, sizes)


_levels = st.one_of(
    _names, _names, _names, _names, ids, _text, st.just(""), st.sampled_from(["x" * 64, "x" * 65, "ü" * 3000, "$SYS"])
)
_paths = st.one_of(
    st.tuples(_names),
    st.tuples(_names),
    st.tuples(st.sampled_from(["ann", "bob"]), _names),
    st.lists(_levels, max_size=4),
    st.sampled_from([[], [], [""] * 150]),
)


def _topics(*kinds: str) -> st.SearchStrategy[str]:
    return st.builds(lambda kind, levels: "/".join((kind, *levels)), st.sampled_from(kinds), _paths)


#: Fields of a request, each with values that are right, wrong, and just over the edge.
_numbers: st.SearchStrategy[Any] = st.one_of(
    st.integers(-2, 5), st.floats(), st.sampled_from([2**31, 2**53, 2**64, -(2**63), 10**300, "1", True, None])
)
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "id": st.one_of(_names, _text, ids, st.just("\ud800")),
    "prompt": st.one_of(_text, st.sampled_from(["", "\x00", "\ud800", "<|im_end|>", "x" * 20_000])),
    "messages": st.one_of(
        json_values,
        st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool", "boss"]), "content": st.text()}),
            max_size=3,
        ),
        st.integers(999, 1001).map(lambda count: [{"role": "user", "content": "x"}] * count),
    ),
    "system": _text,
    "raw": st.booleans() | st.none(),
    "model": st.one_of(_text, st.none()),
    **dict.fromkeys(
        [
            "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "repeat_penalty", "presence_penalty",
            "frequency_penalty", "timeout_s",
        ],
        _numbers,
    ),
    "stop": st.one_of(st.text(max_size=3), st.lists(st.text(max_size=3), max_size=17), st.just("x" * 257)),
    "priority": st.sampled_from(["low", "normal", "high", "urgent", None]),
    "stream": st.booleans(),
    "progress": st.booleans(),
    "include_text": st.booleans() | st.none(),
    "reply_to": st.one_of(
        st.text(max_size=20),
        _text.map(lambda text: f"reply/{text}"),
        st.sampled_from(["edged/v1/fuzzed/req/a", "edged/v1/fuzzed/ctl/a", "reply/#", "$SYS/x", "reply/" + "x" * 507]),
        st.just("edged/v1/fuzzed/reply/a"),
        st.just("reply/\x00"),
    ),
    "metadata": st.one_of(st.dictionaries(st.text(max_size=65), st.text(max_size=4), max_size=17), json_values),
    "tools": st.just([]),
    "promt": st.text(max_size=3),
}  # fmt: skip


def _dump(value: Any) -> bytes:
    """JSON; a lone surrogate stays one, escaped."""
    return json.dumps(value).encode()


_sensible = st.fixed_dictionaries({"prompt": st.sampled_from(["hello", "Grüß dich", "1, 2, 3"])})
#: Requests that are in order, so that the node has something to do while the rest comes in.
_plausible = st.fixed_dictionaries(
    {"prompt": _text.filter(bool)},
    optional={
        "max_tokens": st.integers(1, 9),
        "timeout_s": st.sampled_from([0.001, 0.5, 60]),
        "priority": st.sampled_from(["low", "normal", "high"]),
        "stream": st.booleans(),
        "progress": st.booleans(),
        "reply_to": st.just("reply/elsewhere"),
        "metadata": st.just({"room": "kitchen"}),
    },
)
_twisted = st.builds(
    lambda base, more: {**base, **more},
    _sensible,
    st.lists(
        st.sampled_from(sorted(_FIELDS)).flatmap(lambda name: st.tuples(st.just(name), _FIELDS[name])), max_size=3
    ).map(dict),
)
_control = st.fixed_dictionaries(
    {"op": st.sampled_from(["cancel", "pause", "resume", "replay", "stop"])},
    optional={"from_seq": _numbers, "gen": _numbers, "x": json_values},
)
_words = st.sampled_from([b"cancel", b"pause", b"resume", b"replay", b" cancel \n", b"CANCEL", b"\xef\xbb\xbfcancel"])
_deep = st.builds(
    lambda opening, closing, depth: b'{"prompt":"a","metadata":' + opening * depth + b"1" + closing * depth + b"}",
    st.sampled_from([b"[", b'{"a":']),
    st.sampled_from([b"]", b"}", b""]),
    st.sampled_from([3, 100, 128, 200, 201, 300, 1000, 10_000, 40_000]),
)
_cut = st.builds(
    lambda seed, at, byte: seed[:at] + byte + seed[at + 1 :],
    st.sampled_from(TARGETS["request"].seeds),
    st.integers(0, 300),
    st.binary(max_size=2),
)
_requests = st.one_of(*[_sensible.map(_dump)] * 3, *[_plausible.map(_dump)] * 3, *[_twisted.map(_dump)] * 3, _cut)
_controls = st.one_of(*[_words] * 3, _control.map(_dump))
_nonsense = st.one_of(
    st.text().map(lambda text: text.encode()),
    st.binary(max_size=64),
    json_values.map(_dump),
    _deep,
    _long(st.sampled_from([b"x", "ü".encode(), b"\xff", b"{", b'{"prompt":"', b"\x00"])),
)
payloads = st.one_of(_requests, _controls, _nonsense)
#: A topic and a payload, which mostly go together.
_pairs = st.one_of(
    st.tuples(_topics("req", "req", "ask"), _requests),
    st.tuples(_topics("req", "req", "ask"), _requests),
    st.tuples(_topics("ctl"), _controls),
    st.tuples(_topics("req", "ask", "ctl", "session"), payloads),
)

#: Large ones are rare: they are slow to send, and what they show is shown by one.
_correlations = st.one_of(st.none(), st.none(), st.binary(max_size=20), st.sampled_from([b"", b"c" * 65_535]))
_response_topics = st.one_of(
    st.none(),
    st.none(),
    _text.filter(bool),
    _text.map(lambda text: f"reply/{text}"),
    st.sampled_from(["edged/v1/fuzzed/req/a", "edged/v1/fuzzed/status", "$SYS/broker", "reply/" + "ü" * 300, "/"]),
)

messages = st.builds(
    lambda pair, **more: Message(*pair, **more),
    _pairs,
    qos=st.sampled_from([0, 1, 1]),
    retain=st.sampled_from([False] * 9 + [True]),
    alias=st.sampled_from([None, None, 1, 10]),
    response_topic=_response_topics,
    correlation=_correlations,
    expiry=st.sampled_from([None, None, 0, 1, 2**31, 2**32 - 1]),
    content_type=st.none() | _text,
    utf8=st.sampled_from([None, False, True]),
    user=st.lists(st.tuples(_text, _text), max_size=2).map(tuple),
)
batches = st.lists(messages, min_size=16, max_size=32)
versions = st.sampled_from([4, 5, 5])
