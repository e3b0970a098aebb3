"""Messages of a reply stream, short to write, and what becomes of them. Every stream is of request `k1`."""

from __future__ import annotations

import zlib
from typing import Any

from edged.wire import (
    Accepted,
    Chunk,
    Completed,
    Error,
    ErrorCode,
    Final,
    FinishReason,
    Gap,
    Progress,
    Reasoning,
    Reassembler,
    Reply,
    Result,
    StreamEvent,
    ToolCall,
    Unknown,
    Usage,
)

ID = "k1"


def _at(seq: int, gen: int) -> dict[str, Any]:
    return {"id": ID, "gen": gen, "seq": seq, "ts": 1795226000.0 + seq}


def accepted(seq: int = 0, *, gen: int = 1) -> Accepted:
    return Accepted(**_at(seq, gen), node="pi", boot=3, model="starter", queue_position=0)


def progress(seq: int, *, gen: int = 1) -> Progress:
    return Progress(**_at(seq, gen), phase="prefill", done=32, total=57)


def chunk(seq: int, text: str, *, gen: int = 1) -> Chunk:
    return Chunk(**_at(seq, gen), text=text, n=1)


def reasoning(seq: int, text: str, *, gen: int = 1) -> Reasoning:
    return Reasoning(**_at(seq, gen), text=text, n=1)


def tool_call(seq: int, name: str = "light", *, index: int = 0, gen: int = 1) -> ToolCall:
    return ToolCall(**_at(seq, gen), index=index, call_id=f"c{index}", name=name, arguments={"on": True})


def unknown(seq: int, *, gen: int = 1) -> Unknown:
    return Unknown(**_at(seq, gen), type="citation")


def final(
    seq: int,
    text: str,
    *,
    gen: int = 1,
    include: bool = False,
    finish_reason: FinishReason = "stop",
    reasoning_tokens: int = 0,
) -> Final:
    """The final of a stream whose chunks say `text`; `include` puts it into the final as well."""
    return Final(
        **_at(seq, gen),
        finish_reason=finish_reason,
        text=text if include else None,
        chars=len(text),
        crc32=zlib.crc32(text.encode()),
        node="pi",
        model="starter",
        usage=Usage(prompt_tokens=5, completion_tokens=9, reasoning_tokens=reasoning_tokens),
        error=Error.of(ErrorCode.INTERNAL, "the engine failed") if finish_reason == "error" else None,
    )


def refused(code: ErrorCode = ErrorCode.OVERLOADED) -> Final:
    """The one message of generation 0."""
    return Final(
        **_at(0, 0),
        finish_reason="error",
        chars=0,
        crc32=0,
        node="pi",
        error=Error.of(code, "no", retry_after_ms=1500 if code == ErrorCode.OVERLOADED else None),
    )


def answer(*texts: str, gen: int = 1, include: bool = False) -> list[Accepted | Chunk | Final]:
    """A whole stream: accepted, one chunk per text, final."""
    chunks = [chunk(seq, text, gen=gen) for seq, text in enumerate(texts, 1)]
    return [accepted(gen=gen), *chunks, final(len(texts) + 1, "".join(texts), gen=gen, include=include)]


def feed(stream: Reassembler, *messages: Reply | Unknown) -> list[StreamEvent]:
    """What some messages bring, one after the other."""
    return [event for message in messages for event in stream.feed(message)]


def result_of(events: list[StreamEvent]) -> Result:
    """The result of a stream that has just completed, as its last event and only once."""
    (completed,) = [event for event in events if isinstance(event, Completed)]
    assert events[-1] is completed
    return completed.result


def gaps(events: list[StreamEvent]) -> list[tuple[int, int]]:
    """First and last number of each gap that was told."""
    return [(event.first, event.last) for event in events if isinstance(event, Gap)]
