"""What is fuzzed: all that takes bytes of somebody else's, with what it may raise and what must hold after it."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from edged.engine.protocol import (
    Cancel,
    Decoder,
    Finished,
    Generate,
    Hold,
    Load,
    Loading,
    Note,
    Order,
    ProtocolError,
    Ready,
    Report,
    Step,
    encode,
)
from edged.wire import (
    Reassembler,
    RequestError,
    ToolCall,
    TopicError,
    Topics,
    WireError,
    check_reply_topic,
    parse_control,
    parse_reply,
    parse_request,
    parse_status,
)
from tests.docs import pages

#: No input is longer, bytes; what is longer is refused before it is decoded, by `limits.max_payload` and by MQTT.
LONGEST = 16 * 1024
#: Of what `limits.max_payload` may be: small, so that it is met.
_MAX_PAYLOAD = 8 * 1024
_PENDING, _PENDING_BYTES, _TEXT_BYTES = 4, 2000, 4000
_TOPICS = Topics(node="edge")
_PAGE = "docs/protocol.md"


@dataclass(frozen=True, slots=True)
class Target:
    """A decoder.

    Attributes:
        decode: takes any bytes; what it returns has a `repr` that tells one outcome from another. It raises
            AssertionError where a promise is broken.
        errors: what it may raise besides: the documented errors, exactly these types.
        seeds: inputs to begin with, sensible ones.
    """

    decode: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]


def _same(first: object, again: Callable[[], object]) -> None:
    """What was read, written and read again is the same; that it may be refused then is not documented."""
    try:
        second = again()
    except Exception as error:
        raise AssertionError(f"{first!r} is written so that it cannot be read: {error}") from error
    assert first == second, f"{first!r} is written so that it reads {second!r}"


def _request(data: bytes) -> object:
    request = parse_request(data, max_bytes=_MAX_PAYLOAD)
    assert len(data) <= _MAX_PAYLOAD
    assert request.conversation
    _same(request, lambda: parse_request(request.model_dump_json().encode(), max_bytes=8 * LONGEST))
    return request, request.stops


def _control(data: bytes) -> object:
    control = parse_control(data, max_bytes=_MAX_PAYLOAD)
    _same(control, lambda: parse_control(control.model_dump_json().encode(), max_bytes=_MAX_PAYLOAD))
    return control


def _reply(data: bytes) -> object:
    message = parse_reply(data)
    if not isinstance(message, ToolCall):  # its arguments are whatever the model wrote, 1e999 included
        _same(message, lambda: parse_reply(message.payload()))
    return message


def _status(data: bytes) -> object:
    status = parse_status(data)
    _same(status, lambda: parse_status(status.payload()))
    return status


def _topic(data: bytes) -> object:
    topic = data.decode(errors="surrogatepass")
    allowed = ("reply/#", f"{_TOPICS.base}/reply/#", "+/x/#")
    with contextlib.suppress(TopicError):
        check_reply_topic(topic, allowed=allowed, topics=_TOPICS)
        assert not _TOPICS.is_input(topic)
        assert len(topic.encode()) <= 512
    kind, levels = _TOPICS.split(topic)
    assert "/".join((_TOPICS.base, kind, *levels)) == topic
    address = _TOPICS.parse(topic)
    assert _TOPICS.of(address.kind, address.path) == topic
    return address


def _stream(data: bytes) -> object:
    """A reply stream, a message a line."""
    assembler = Reassembler(max_pending=_PENDING, max_pending_bytes=_PENDING_BYTES, max_text_bytes=_TEXT_BYTES)
    came: list[object] = []
    for line in data.split(b"\n"):
        before = (assembler.id, assembler.gen, assembler.text_so_far, assembler.missing)
        try:
            came += assembler.feed(line)
        except WireError as error:
            came.append((type(error), str(error)))
            if type(error) is WireError:
                assert before == (assembler.id, assembler.gen, assembler.text_so_far, assembler.missing)
        assert len(assembler._pending) <= _PENDING
        assert len(assembler.text_so_far.encode()) <= _TEXT_BYTES
        missing = assembler.missing
        assert (missing is None) == (assembler.result is not None)
        assert missing is None or len(missing.ranges) <= _PENDING + 1, "holes are not bounded"
    return came


def _frames(data: bytes) -> object:
    """What a child says; in pieces it is the same, up to what makes no sense."""
    pieces: list[Order | Report] = []
    decoder, nonsense = Decoder(), ""
    try:
        for at in range(0, len(data), 7):
            pieces += decoder.feed(data[at : at + 7])
    except ProtocolError as error:
        nonsense = str(error)
    try:
        messages = Decoder().feed(data)
    except ProtocolError as whole:
        if str(whole) != nonsense:
            raise AssertionError(f"in pieces it is {nonsense!r}") from whole
        raise
    assert (messages, "") == (pieces, nonsense), "in pieces it is read differently"
    _same(messages, lambda: Decoder().feed(b"".join(map(encode, messages))))
    return messages


def _examples() -> list[str]:
    """The JSON objects of the protocol's page."""
    fences = [fence for section in pages.sections(_PAGE) for fence in section.fences]
    return [fence.text.replace("\n", " ") for fence in fences if fence.language == "json"]


def _published() -> list[str]:
    """What the page's commands publish."""
    return re.findall(r" -m '?([^'\n]+?)'?$", pages.read(_PAGE), re.MULTILINE)


def _of_stream() -> tuple[bytes, ...]:
    return tuple(text.encode() for text in _examples() if '"type":' in text and '"gen":' in text)


_FRAMES: tuple[Order | Report, ...] = (
    Load(path="a.gguf"),
    Generate(1, 9, 0.5, 0.9, 40, 0.05, 7, 1.0, 0.0, 0.0, stop=["x"], messages=[("user", "hi")], generated=[1, 2]),
    Cancel(1),
    Hold(2),
    Loading(0.5),
    Ready(4096, 8, 2, 135, "Q4", "sha256:0"),
    Step(deltas=[(1, "hé", [5])], prefill=[(2, 3, 9)], finished=[Finished(1, "stop", timings={"a_ms": 1.5})]),
    Note("info", "text"),
)


def _begun(seeds: tuple[bytes, ...]) -> bytes:
    """A whole small stream: the page's messages are each of another one."""
    chunk = b'{"id":"k","gen":1,"seq":%d,"ts":1.0,"type":"chunk","text":"ab","n":1}\n'
    final = b'{"id":"k","gen":1,"seq":3,"ts":1.0,"type":"final","finish_reason":"stop","chars":6,"crc32":%d,"node":"n"}'
    return b"".join(chunk % seq for seq in range(3)) + final % zlib.crc32(b"ababab") + b"\n" + b"\n".join(seeds)


TARGETS: dict[str, Target] = {
    "request": Target(_request, (RequestError,), tuple(s.encode() for s in (*_examples(), *_published()))),
    "control": Target(_control, (RequestError,), tuple(s.encode() for s in (*_examples(), *_published()))),
    "reply": Target(_reply, (WireError,), _of_stream()),
    "status": Target(_status, (WireError,), tuple(s.encode() for s in _examples() if '"state"' in s)),
    "topic": Target(
        _topic,
        (TopicError, UnicodeDecodeError),  # the second is bytes that no topic can be made of
        tuple(t.encode() for t in re.findall(r"edged/v1/edge/[a-z0-9/]+", pages.read(_PAGE))),
    ),
    "stream": Target(_stream, (), (_begun(_of_stream()), *_of_stream())),
    "frames": Target(_frames, (ProtocolError,), (b"".join(map(encode, _FRAMES)), *map(encode, _FRAMES))),
}
