"""What a reply stream brings once it is put together: the Reassembler's events, its result and its errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from edged.wire.errors import WireError
from edged.wire.messages import (
    Accepted,
    Chunk,
    Error,
    Final,
    FinishReason,
    Progress,
    Reasoning,
    ToolCall,
    Unknown,
)

Unproven: TypeAlias = Literal["reasoning", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Result:
    """A whole stream, its text proven by the final's `chars` and `crc32`.

    Attributes:
        text: all of the answer.
        reasoning: what the model thought, up to the first gap.
        final: the final message: finish reason, metrics, error.
        healed: something was lost and the final's `text` stood in for it.
        unproven: what may have been lost in a healed gap, because `text` says nothing about it. `tool_calls` is of no
            concern to a request without tools.
        duplicates: copies that came besides, in the final's generation.
    """

    id: str
    gen: int
    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    final: Final
    healed: bool
    unproven: frozenset[Unproven]
    duplicates: int

    @property
    def finish_reason(self) -> FinishReason:
        """How the answer ended; `cancelled` and `error` have a text that ends where the node stopped."""
        return self.final.finish_reason

    @property
    def error(self) -> Error | None:
        """Why the request failed or was refused; None where it was answered."""
        return self.final.error


@dataclass(frozen=True, slots=True)
class Missing:
    """What a stream still lacks: the arguments of a `replay`.

    Attributes:
        gen: the generation to ask for; None while none of an execution has come.
        from_seq: the first message that was not delivered.
        ranges: the holes, as (first, last) seq, both inclusive, ascending.
        tail: the final is outstanding too, so more may follow the last of `ranges`.
    """

    gen: int | None
    from_seq: int
    ranges: tuple[tuple[int, int], ...]
    tail: bool


@dataclass(frozen=True, slots=True)
class Restarted:
    """The node runs the request again as generation `gen`: everything delivered before is void."""

    gen: int


@dataclass(frozen=True, slots=True)
class Gap:
    """The messages `first` to `last` (both inclusive) are missing; said once per hole. They may still come."""

    gen: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Remainder:
    """Text that no chunk brought: a non-streamed answer, or what a healed gap had swallowed. Follows the chunks."""

    gen: int
    text: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal (generation 0) beside a stream that goes on: another's `id_conflict`, or no more replay to be had."""

    final: Final


@dataclass(frozen=True, slots=True)
class Completed:
    """The stream is whole; comes once, and last."""

    result: Result


#: The messages that are delivered as they came; the final is in `Completed`.
Piece: TypeAlias = Accepted | Progress | Chunk | Reasoning | ToolCall | Unknown
#: What `feed` returns.
StreamEvent: TypeAlias = Piece | Restarted | Gap | Remainder | Refused | Completed


class AssemblyError(WireError):
    """A message that does not fit its stream.

    Attributes:
        id: the stream's id.
        gen: the generation of the message that showed it.
        seq: the number of that message.
        events: what the same message still delivered before it failed, in order.
    """

    def __init__(self, message: str, *, id: str, gen: int, seq: int, events: tuple[StreamEvent, ...] = ()) -> None:  # noqa: A002 - the contract's name
        super().__init__(message)
        self.id = id
        self.gen = gen
        self.seq = seq
        self.events = events


class WrongStreamError(AssemblyError):
    """A message of another request; the stream is untouched. `id` is the stream's, `got` the message's."""

    def __init__(self, *, id: str, got: str, gen: int, seq: int) -> None:  # noqa: A002 - the contract's name
        super().__init__(f"a message of request {got!r} in the stream of {id!r}", id=id, gen=gen, seq=seq)
        self.got = got


class CorruptError(AssemblyError):
    """The stream contradicts itself; more messages cannot mend that. `Reassembler.reset` begins it afresh."""


class TextTooLongError(AssemblyError):
    """The stream has more text than the consumer allows; `limit` is in bytes of UTF-8."""

    def __init__(
        self,
        *,
        limit: int,
        id: str,  # noqa: A002 - the contract's name
        gen: int,
        seq: int,
        events: tuple[StreamEvent, ...] = (),
    ) -> None:
        super().__init__(
            f"request {id!r} is answered with more than {limit} bytes: raise max_text_bytes or lower max_tokens",
            id=id,
            gen=gen,
            seq=seq,
            events=events,
        )
        self.limit = limit
