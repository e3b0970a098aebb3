"""One request that was accepted: its place, its text, and the dense numbering of what is said about it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from enum import Enum, auto

from edged.core.events import Finished, Now, Properties, Sampling
from edged.wire.messages import (
    INCLUDE_TEXT_BYTES,
    Accepted,
    Chunk,
    Error,
    Final,
    FinishReason,
    Metrics,
    Phase,
    Progress,
    Usage,
)
from edged.wire.request import Request
from edged.wire.topics import RequestPath

#: `progress` messages of one stream come at least so far apart, seconds.
_PROGRESS_S = 0.5


class State(Enum):
    """Where a stream stands."""

    WAITING = auto()
    RUNNING = auto()
    CANCELLING = auto()  #: the engine was asked to stop it
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class Key:
    """What names a request on this node."""

    client: str | None
    id: str

    @property
    def path(self) -> RequestPath:
        """The PATH of its topics."""
        return RequestPath(self.id, self.client)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream is to end when the engine has let go of it."""

    reason: FinishReason
    error: Error | None = None


@dataclass(slots=True, eq=False)
class Stream:
    """An accepted request.

    Attributes:
        uid: its number inside the daemon, which the engine knows it by.
        digest: of the payload, to tell a repeated request from a conflicting one.
        deadline: monotonic seconds.
        only_final: one message, the final (`ask`, or `stream: false`).
        unconfirmed: messages that the broker has not confirmed.
        ending: decided before the engine was done: a cancel, or the deadline.
    """

    uid: int
    key: Key
    request: Request
    model: str
    sampling: Sampling
    digest: bytes
    topic: str
    properties: Properties
    arrived: Now
    deadline: float
    only_final: bool
    state: State = State.WAITING
    gen: int = 1
    started: float | None = None
    first_token: float | None = None
    unconfirmed: int = 0
    ending: Ending | None = None
    _seq: int = 0
    _parts: list[str] = field(default_factory=list)
    _pending: list[str] = field(default_factory=list)
    _pending_tokens: int = 0
    _tokens: int = 0
    _chars: int = 0
    _bytes: int = 0
    _crc32: int = 0
    _flushed: float | None = None
    _progressed: float = float("-inf")

    # --- text in ---

    def add(self, text: str, tokens: int, now: Now) -> None:
        """Take in generated text."""
        if self.first_token is None:
            self.first_token = now.mono
        raw = text.encode()
        self._parts.append(text)
        self._pending.append(text)
        self._pending_tokens += tokens
        self._tokens += tokens
        self._chars += len(text)
        self._bytes += len(raw)
        self._crc32 = zlib.crc32(raw, self._crc32)

    def flush_due(self, *, flush_s: float, flush_tokens: int, max_waiting: int) -> float | None:
        """When the next chunk is due, in monotonic seconds: the first at once.

        None where there is nothing to say, or where it has to wait for a PUBACK.
        """
        if not self._pending or self.only_final or self.unconfirmed >= max_waiting:
            return None
        if self._flushed is None or self._pending_tokens >= flush_tokens:
            return float("-inf")
        return self._flushed + flush_s

    # --- messages out ---

    def accepted(self, *, node: str, boot: int, position: int, now: Now) -> Accepted:
        """The first message."""
        return Accepted(
            **self._envelope(now),
            node=node,
            boot=boot,
            model=self.model,
            queue_position=position,
            metadata=self.request.metadata,
        )

    def chunk(self, now: Now) -> Chunk | None:
        """All text that waits, in one message; None where none does."""
        if not self._pending or self.only_final:
            return None
        message = Chunk(**self._envelope(now), text="".join(self._pending), n=self._pending_tokens)
        self._pending.clear()
        self._pending_tokens = 0
        self._flushed = now.mono
        return message

    def progress(
        self, phase: Phase, now: Now, *, position: int | None = None, done: int | None = None, total: int | None = None
    ) -> Progress | None:
        """What the request waits for; None where nobody asked, or the last one is too recent or still on its way."""
        wanted = self.request.progress and not self.only_final
        if not wanted or self.unconfirmed > 1 or now.mono < self._progressed + _PROGRESS_S:
            return None
        self._progressed = now.mono
        return Progress(**self._envelope(now), phase=phase, queue_position=position, done=done, total=total)

    def final(self, ending: Ending, engine: Finished | None, *, node: str, now: Now) -> Final:
        """The last message."""
        self.state = State.ENDED
        include = self.request.include_text
        if include is None or self.only_final:
            include = self.only_final or self._bytes <= INCLUDE_TEXT_BYTES
        return Final(
            **self._envelope(now),
            finish_reason=ending.reason,
            text="".join(self._parts) if include else None,
            chars=self._chars,
            crc32=self._crc32,
            node=node,
            model=self.model,
            seed=self.sampling.seed,
            usage=Usage(
                prompt_tokens=engine.prompt_tokens if engine else 0,
                cached_tokens=engine.cached_tokens if engine else 0,
                completion_tokens=engine.completion_tokens if engine else self._tokens,
            ),
            metrics=self._metrics(engine, now),
            metadata=self.request.metadata,
            error=ending.error,
        )

    def summary(self, final: Final) -> dict[str, object]:
        """What the log says of it, in one line: everything but what was asked and answered."""
        return {
            "id": self.key.id,
            **({"client": self.key.client} if self.key.client else {}),
            "model": self.model,
            "finish_reason": final.finish_reason,
            **({"code": str(final.error.code)} if final.error else {}),
            **(final.usage.model_dump(exclude_defaults=True) if final.usage else {}),
            **(final.metrics.model_dump(exclude_none=True) if final.metrics else {}),
        }

    def _envelope(self, now: Now) -> dict[str, object]:
        seq, self._seq = self._seq, self._seq + 1
        return {"id": self.key.id, "gen": self.gen, "seq": seq, "ts": round(now.wall, 3)}

    def _metrics(self, engine: Finished | None, now: Now) -> Metrics:
        timings = dict(engine.timings) if engine else {}
        for name in ("prefill_time_ms", "generation_time_ms", "tokens_per_second", "prompt_tokens_per_second"):
            timings.setdefault(name, 0.0)
        timings.setdefault("mean_batch_size", 0.0)
        begun = self.started if self.started is not None else now.mono
        first = None if self.first_token is None else _ms(self.first_token - self.arrived.mono)
        return Metrics(
            queue_time_ms=_ms(begun - self.arrived.mono),
            time_to_first_token_ms=first,
            e2e_time_ms=_ms(now.mono - self.arrived.mono),
            **timings,
        )


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)


def refusal(error: Error, *, id: str, node: str, now: Now) -> Final:  # noqa: A002 - the contract's name
    """The one message about a request that this node does not execute: generation 0."""
    return Final(
        id=id,
        gen=0,
        seq=0,
        ts=round(now.wall, 3),
        finish_reason="error",
        chars=0,
        crc32=0,
        node=node,
        error=error,
    )
