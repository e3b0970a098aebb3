"""What the daemon and an engine's child process say to each other, and how it crosses the socket between them.

Frames are a length (4 bytes, little-endian) and JSON in UTF-8: nothing that the child says can do more in the parent
than be a wrong value of the right type. A frame that makes no sense raises `ProtocolError`, and the parent gives the
child up.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

_LENGTH = struct.Struct("<I")
#: No order and no report is as long, not even one of the longest request that may be allowed, all of control
#: characters, which JSON takes six bytes for. A longer frame is nonsense. Bytes.
MAX_FRAME = 128 * 1024 * 1024
#: Of a `Note`.
LEVELS = ("debug", "info", "warning", "error")


class ProtocolError(RuntimeError):
    """The other side sent something that is no frame, or a frame that is no message."""


@dataclass(frozen=True, slots=True)
class Load:
    """The first order: load this model.

    Attributes:
        context: size of the KV cache in tokens, shared by all sequences.
        parallel: sequences generated at the same time.
        threads: CPU threads, at most; 0 = one for each physical core.
        ubatch: tokens that llama.cpp computes at once.
        flash_attention: `auto`, `on` or `off`.
        kv_type: of the numbers in the KV cache, `f16` or `q8_0`.
        repack: let llama.cpp keep weights in the layouts that are fastest on this processor.
        prefix_cache: keep what was computed for those who begin alike.
        yield_threads: use fewer threads while other programs want the cores.
        itl_target_ms: while sequences are generating, the longest step that prefill may cause, milliseconds.
        hold_ms: text may wait for more text for so long before it is reported, milliseconds.
        digest: of the file, where it is known; empty = the child reads it all once and tells.
    """

    op: ClassVar[str] = "load"
    path: str
    context: int = 4096
    parallel: int = 8
    threads: int = 0
    gpu_layers: int = 0
    ubatch: int = 64
    flash_attention: str = "auto"
    kv_type: str = "f16"
    repack: bool = True
    prefix_cache: bool = True
    yield_threads: bool = False
    itl_target_ms: float = 50.0
    hold_ms: float = 0.0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Generate:
    """Generate an answer. `messages` are (role, content); without them `prompt` is completed as it stands.

    Attributes:
        generated: tokens of the answer that were given out before, by a child that is gone; it goes on after them.
        crc32: zlib's checksum of the text that those tokens were, in UTF-8; None = nobody knows.
        owner: whose request it is; what it leaves in the prefix cache serves that owner alone.
        shared: so many of the first messages are the operator's own words: what they leave there serves all.
        exact: where it is alone, the answer is the same to the last bit, whatever the prefix cache had.
    """

    op: ClassVar[str] = "generate"
    uid: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    stop: list[str] = field(default_factory=list)
    messages: list[tuple[str, str]] | None = None
    prompt: str | None = None
    progress: bool = False
    generated: list[int] = field(default_factory=list)
    crc32: int | None = None
    owner: str | None = None
    shared: int = 0
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request; it is answered with its `Finished`. An unknown `uid` is nothing to do."""

    op: ClassVar[str] = "cancel"
    uid: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Compute nothing more for a request until its `Release`. An unknown `uid` is nothing to do."""

    op: ClassVar[str] = "hold"
    uid: int


@dataclass(frozen=True, slots=True)
class Release:
    """Go on with a request that was held. An unknown `uid`, or one that is not held, is nothing to do."""

    op: ClassVar[str] = "release"
    uid: int


@dataclass(frozen=True, slots=True)
class Loading:
    """How much of the file has been loaded, 0 to 1."""

    op: ClassVar[str] = "loading"
    fraction: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded. `context` and `parallel` are what llama.cpp granted, `digest` is `sha256:…` of the file."""

    op: ClassVar[str] = "ready"
    context: int
    parallel: int
    threads: int
    parameters: int
    quantisation: str
    digest: str

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: a figure makes no sense.
        """
        if min(self.context, self.parallel, self.threads) < 1 or self.parameters < 0:
            raise ValueError("a model of no size")


@dataclass(frozen=True, slots=True)
class Failed:
    """The model cannot be loaded; the child ends after it.

    Attributes:
        error: `out_of_memory` or `unavailable`.
    """

    op: ClassVar[str] = "failed"
    message: str
    error: str = "unavailable"


@dataclass(frozen=True, slots=True)
class Finished:
    """One request's end.

    Attributes:
        reason: `stop`, `length`, `cancelled` or `error`.
        error: with `error`: `bad_request`, `context_overflow` or `internal`.
        timings: the engine's share of the metrics (docs/protocol.md, section 4), by their names; and `waited_ms`,
            from its arrival at the engine to its first step.
    """

    uid: int
    reason: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    error: str = ""
    message: str = ""


@dataclass(slots=True)
class Step:
    """What some turns of the child's loop brought: (uid, text, its tokens), (uid, done, total), and who is finished.

    Attributes:
        held_s: how long the oldest of the text has waited, seconds.
    """

    op: ClassVar[str] = "step"
    deltas: list[tuple[int, str, list[int]]] = field(default_factory=list)
    prefill: list[tuple[int, int, int]] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    held_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Note:
    """A line of llama.cpp's log, or the child's own."""

    op: ClassVar[str] = "note"
    level: str
    text: str

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: there is no such level.
        """
        if self.level not in LEVELS:
            raise ValueError("a level that there is not")


Order = Load | Generate | Cancel | Hold | Release
Report = Loading | Ready | Failed | Step | Note


def _reader(kind: Any) -> Callable[[Any], Any]:
    """What turns parsed JSON into a value of the type `kind`, or raises TypeError or ValueError."""
    parts = [_reader(part) for part in get_args(kind)]
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        members = {member.name: _reader(hints[member.name]) for member in fields(kind)}
        return lambda value: kind(**_members(members, value))
    origin = get_origin(kind)
    if origin is list:
        return lambda value: [parts[0](one) for one in _plain(list, value)]
    if origin is tuple:
        return lambda value: tuple(part(one) for part, one in zip(parts, _plain(list, value), strict=True))
    if origin is dict:  # JSON's keys are strings
        return lambda value: {name: parts[1](one) for name, one in _plain(dict, value).items()}
    if origin is UnionType:  # of a type and None
        return lambda value: None if value is None else parts[0](value)
    return lambda value: _plain(kind, value)


def _members(members: dict[str, Callable[[Any], Any]], value: Any) -> dict[str, Any]:
    if _plain(dict, value).keys() != members.keys():
        raise ValueError(f"its fields are {', '.join(sorted(value))}, not {', '.join(sorted(members))}")
    return {name: read(value[name]) for name, read in members.items()}


def _plain(kind: Any, value: Any) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} is due")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"the number {value}")
    return value


_MESSAGES: dict[str, Callable[[Any], Order | Report]] = {
    kind.op: _reader(kind) for kind in (Load, Generate, Cancel, Hold, Release, Loading, Ready, Failed, Step, Note)
}


_FIELDS = {kind: [one.name for one in fields(kind)] for kind in (*get_args(Order), *get_args(Report), Finished)}


def _values(message: Order | Report | Finished) -> dict[str, Any]:
    """By the names of its fields; `dataclasses.asdict` would copy all that is in them first."""
    return {name: getattr(message, name) for name in _FIELDS[type(message)]}


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_values)


def encode(message: Order | Report) -> bytes:
    """One frame."""
    text = _ENCODER.encode({"op": message.op, **_values(message)})
    body = text.encode("utf-8", "surrogatepass")  # a path may have bytes that are no UTF-8 (PEP 383)
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Turns bytes as they come into messages. Sans-I/O."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Order | Report]:
        """The messages that `data` completes.

        Raises:
            ProtocolError: what came is no frame or no message.
        """
        self._buffer += data
        messages: list[Order | Report] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME:
                raise ProtocolError(f"a frame of {length} bytes; at most {MAX_FRAME} are allowed")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(_message(bytes(self._buffer[start + _LENGTH.size : end])))
            start = end
        del self._buffer[:start]
        return messages


def _message(body: bytes) -> Order | Report:
    try:
        values: dict[str, Any] = json.loads(body)
        read = _MESSAGES[values.pop("op")]
        return read(values)
    # A number too large for a float, and brackets nested too deeply, are nonsense as well.
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"[
            :200
        ]  # no more: it goes to the log, and the frame may be someone's text
        raise ProtocolError(f"a frame of {len(body)} bytes that is no message: {why}") from error
