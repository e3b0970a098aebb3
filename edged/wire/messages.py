"""What the daemon says: the reply stream, presence and events (docs/protocol.md, sections 3, 4 and 7).

The daemon builds these models; consumers read them with `parse_reply`, which is lenient where the contract may grow:
unknown fields are passed over and an unknown `type` still counts in the sequence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edged.wire.errors import ErrorCode, WireError

#: The version of the contract, as the status card says it.
PROTOCOL = 1
#: While the text has at most so many bytes of UTF-8 it goes into the final, unless the request says otherwise.
INCLUDE_TEXT_BYTES = 16 * 1024

FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "error"]
Phase = Literal["queued", "loading", "prefill", "paused", "resumed"]
NodeState = Literal["loading", "online", "busy", "paused", "draining", "offline", "lost"]

Count = Annotated[int, Field(ge=0)]
#: What every JSON parser reads exactly (RFC 8259, section 6).
Number = Annotated[int, Field(ge=0, le=2**53 - 1)]
Milliseconds = Annotated[float, Field(ge=0)]


class _Model(BaseModel):
    # JSON has neither NaN nor Infinity: a message with one could be read here, and be written by nobody.
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    def payload(self) -> bytes:
        """The message as the PUBLISH carries it: JSON in UTF-8, absent fields left out."""
        return self.model_dump_json(exclude_none=True).encode()


class _InStream(_Model):
    """What every message of a reply stream carries."""

    id: str = Field(description="the request's id")
    gen: Number = Field(description="generation: rises when the request is executed again; 0 = refused")
    seq: Number = Field(description="dense within a generation, from 0")
    ts: float = Field(description="Unix seconds, millisecond precision")


class Accepted(_InStream):
    """The request is safely recorded; `seq` 0 of a stream."""

    type: Literal["accepted"] = "accepted"
    node: str
    boot: Count
    model: str
    queue_position: Count = Field(description="0 = runs at once")
    metadata: dict[str, str] | None = None


class Progress(_InStream):
    """What a request is waiting for; on demand, at most twice a second."""

    type: Literal["progress"] = "progress"
    phase: Phase
    queue_position: Count | None = None
    done: Count | None = Field(None, description="prompt tokens processed")
    total: Count | None = Field(None, description="prompt tokens in all")
    eta_ms: Milliseconds | None = None


class Chunk(_InStream):
    """Generated text, always whole UTF-8 characters."""

    type: Literal["chunk"] = "chunk"
    text: str
    n: Count = Field(description="tokens in it")


class Reasoning(_InStream):
    """What the model thinks, apart from what it says."""

    type: Literal["reasoning"] = "reasoning"
    text: str
    n: Count


class ToolCall(_InStream):
    """A complete, validated call of one of the request's tools."""

    type: Literal["tool_call"] = "tool_call"
    index: Count
    call_id: str
    name: str
    arguments: dict[str, Any]


class Usage(_Model):
    """Token counts of one request."""

    prompt_tokens: Count
    cached_tokens: Count = 0
    completion_tokens: Count
    reasoning_tokens: Count = 0


class Metrics(_Model):
    """How one request was served. ITL is the gap between two tokens of the same stream."""

    queue_time_ms: Milliseconds
    time_to_first_token_ms: Milliseconds | None = Field(None, description="from arrival to the first token")
    prefill_time_ms: Milliseconds
    generation_time_ms: Milliseconds
    e2e_time_ms: Milliseconds = Field(description="from arrival to the final")
    tokens_per_second: Annotated[float, Field(ge=0)]
    prompt_tokens_per_second: Annotated[float, Field(ge=0)]
    mean_itl_ms: Milliseconds | None = None
    p95_itl_ms: Milliseconds | None = None
    max_itl_ms: Milliseconds | None = None
    mean_batch_size: Annotated[float, Field(ge=0)] = Field(description="mean of sequences per decode step")
    preemptions: Count = 0
    resumed: Count = 0


class Error(_Model):
    """Why a request ended in `error`."""

    code: ErrorCode
    status: int
    message: str
    retryable: bool
    retry_after_ms: Count | None = None

    @classmethod
    def of(cls, code: ErrorCode, message: str, *, retry_after_ms: int | None = None) -> Error:
        """Fill in what follows from the code."""
        return cls(
            code=code,
            status=code.status,
            message=message,
            retryable=code.retryable,
            retry_after_ms=retry_after_ms,
        )


class Final(_InStream):
    """The last message of a stream, exactly one."""

    type: Literal["final"] = "final"
    finish_reason: FinishReason
    text: str | None = Field(None, description="the whole text, where it is included")
    chars: Count = Field(description="Unicode code points of the concatenated chunk texts")
    crc32: int = Field(ge=0, le=2**32 - 1, description="zlib's, of their UTF-8 bytes")
    node: str
    model: str | None = None
    seed: Count | None = None
    usage: Usage | None = None
    metrics: Metrics | None = None
    metadata: dict[str, str] | None = None
    error: Error | None = None


class Unknown(_InStream):
    """A message of a type that this version does not know: it keeps its place in the sequence."""

    type: str


Reply = Accepted | Progress | Chunk | Reasoning | ToolCall | Final
KnownReply = Annotated[Reply, Field(discriminator="type")]
#: Every message of a reply stream, told apart by `type`.
reply_adapter: TypeAdapter[Reply] = TypeAdapter(KnownReply)
_KNOWN = frozenset({"accepted", "progress", "chunk", "reasoning", "tool_call", "final"})


def parse_reply(payload: bytes | str) -> Reply | Unknown:
    """Read one message of a reply stream.

    Raises:
        WireError: not JSON, or a field is missing or of the wrong type; the message names it.
    """
    try:
        envelope = Unknown.model_validate_json(payload)
        return reply_adapter.validate_json(payload) if envelope.type in _KNOWN else envelope
    except ValidationError as error:
        raise WireError(f"not a message of a reply stream: {_explained(error)}") from None


class ModelCard(_Model):
    """One loaded model, as the status card lists it."""

    alias: str
    file: str = Field(description="file name, without its directory")
    digest: str | None = Field(None, description="sha256:… of the file")
    context: Count = Field(description="tokens that prompt and answer may have together")
    parallel: Count = Field(description="requests generated at the same time")
    parameters: Count | None = None
    quantisation: str | None = None


class Queue(_Model):
    """How busy the node is, in requests."""

    running: Count
    waiting: Count
    capacity: Count


class Status(_Model):
    """The retained card at `ROOT/NODE/status`, which is also the last will (then `state` is `lost`)."""

    state: NodeState
    node: str
    boot: Count = Field(description="rises at every start of the daemon; the same in the will")
    version: str
    protocol: int = PROTOCOL
    models: list[ModelCard] = []
    presets: list[str] = []
    queue: Queue | None = None
    tokens_per_second: Annotated[float, Field(ge=0)] | None = Field(None, description="of all streams, last 10 s")
    limits: dict[str, int | float] | None = None
    since: float = Field(description="Unix seconds of the change to this state")


class NodeMetrics(_Model):
    """The periodic figures at `ROOT/NODE/metrics`. Counters start at 0 with every boot."""

    ts: float
    node: str
    boot: Count
    uptime_s: Annotated[float, Field(ge=0)]
    running: Count
    waiting: Count
    tokens_per_second: Annotated[float, Field(ge=0)]
    accepted: Count
    finished: dict[str, Count] = Field(description="finals by finish_reason")
    refused: dict[str, Count] = Field(description="finals of generation 0 by error code")
    ignored_retained: Count = Field(description="retained messages on input topics")
    prompt_tokens: Count
    completion_tokens: Count
    engine_restarts: Count
    reconnects: Count
    outbox: Count = Field(description="messages that the broker has not confirmed")


class Event(_Model):
    """What has no reply topic to go to, at `ROOT/NODE/events`."""

    type: Literal["refused", "ignored"] = Field(description="ignored = a retained message on an input topic")
    ts: float
    node: str
    topic: str = Field(description="the topic it came in on, cut at 512 characters")
    id: str | None = Field(None, description="the id under which it was answered")
    error: Error


def parse_status(payload: bytes | str) -> Status:
    """Read a status card.

    Raises:
        WireError: not a status card; the message names the field.
    """
    try:
        return Status.model_validate_json(payload)
    except ValidationError as error:
        raise WireError(f"not a status card: {_explained(error)}") from None


def _explained(error: ValidationError) -> str:
    """The first of pydantic's complaints, with the field it is about."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
