"""What the daemon and an engine's child process say to each other, and how it crosses the socket between them.

Frames are a length (4 bytes, little-endian) and JSON in UTF-8: nothing that the child says can do more in the parent
than be a wrong value. A frame that is torn or makes no sense raises `ProtocolError`, and the parent gives the child up.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

_LENGTH = struct.Struct("<I")
#: No order and no report comes near this; a longer frame is nonsense. Bytes.
MAX_FRAME = 64 * 1024 * 1024


class ProtocolError(RuntimeError):
    """The other side sent something that is no frame, or a frame that is no message."""


@dataclass(frozen=True, slots=True)
class Load:
    """The first order: load this model.

    Attributes:
        context: size of the KV cache in tokens, shared by all sequences.
        parallel: sequences generated at the same time.
        threads: CPU threads; 0 = one for each physical core.
        itl_target_ms: while sequences are generating, the longest step that prefill may cause, milliseconds.
        digest: of the file, where it is known; empty = the child reads it all once and tells.
    """

    op: ClassVar[str] = "load"
    path: str
    context: int = 4096
    parallel: int = 8
    threads: int = 0
    gpu_layers: int = 0
    itl_target_ms: float = 100.0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Generate:
    """Generate an answer. `messages` are (role, content); without them `prompt` is completed as it stands."""

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


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request; it is answered with its `Finished`. An unknown `uid` is nothing to do."""

    op: ClassVar[str] = "cancel"
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


@dataclass(frozen=True, slots=True)
class Failed:
    """The model cannot be loaded; the child ends after it."""

    op: ClassVar[str] = "failed"
    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    """One request's end.

    Attributes:
        reason: `stop`, `length`, `cancelled` or `error`.
        error: with `error`: `bad_request`, `context_overflow` or `internal`.
        timings: the engine's share of the metrics (docs/protocol.md, section 4), by their names.
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
    """One turn of the child's loop: (uid, text, tokens), (uid, done, total), and who is finished."""

    op: ClassVar[str] = "step"
    deltas: list[tuple[int, str, int]] = field(default_factory=list)
    prefill: list[tuple[int, int, int]] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.deltas or self.prefill or self.finished)


@dataclass(frozen=True, slots=True)
class Note:
    """A line of llama.cpp's log, or the child's own."""

    op: ClassVar[str] = "note"
    level: str
    text: str


Order = Load | Generate | Cancel
Report = Loading | Ready | Failed | Step | Note
_MESSAGES: dict[str, type[Order | Report]] = {
    kind.op: kind for kind in (Load, Generate, Cancel, Loading, Ready, Failed, Step, Note)
}


def encode(message: Order | Report) -> bytes:
    """One frame."""
    body = json.dumps({"op": message.op, **asdict(message)}, ensure_ascii=False, separators=(",", ":")).encode()
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

    @property
    def torn(self) -> bool:
        """Whether the stream stands in the middle of a frame."""
        return bool(self._buffer)


def _message(body: bytes) -> Order | Report:
    try:
        values: dict[str, Any] = json.loads(body)
        kind = _MESSAGES[values.pop("op")]
        if kind is Step:
            values["finished"] = [Finished(**one) for one in values["finished"]]
        return _build(kind, values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"a frame of {len(body)} bytes that is no message: {error!r}") from error


def _build(kind: type[Order | Report], values: dict[str, Any]) -> Order | Report:
    missing = {f.name for f in fields(kind)} - values.keys()
    if missing:
        raise ValueError(f"{kind.op} without {', '.join(sorted(missing))}")
    return kind(**values)
