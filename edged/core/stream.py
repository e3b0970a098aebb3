"""One request that was accepted: its place, its text, and what is to be said about it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum, auto

from edged.core.answer import Answer
from edged.core.delivery import Delivery
from edged.core.events import Finished, Generate, Now, Sampling
from edged.core.records import Generated, Key, Standing, Unfinished
from edged.wire.errors import ErrorCode
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

#: `progress` messages of one stream come at least so far apart, seconds.
_PROGRESS_S = 0.5
#: Tokens that clear a suspect: an engine that dies so much further on died of something else.
_INNOCENT_TOKENS = 8
#: Text in one chunk, bytes of UTF-8; more goes into the next one.
MAX_CHUNK_BYTES = 16 * 1024
#: So many deaths in a row without a new token are no accident, even if each looks like a kill from outside: the kernel
#: kills like that, too, when memory runs out, and that may be this one's doing after all.
_FRUITLESS = 6


class State(Enum):
    """Where a stream stands."""

    WAITING = auto()  #: to begin, or to go on after its engine died
    RUNNING = auto()
    CANCELLING = auto()  #: the engine was asked to stop it
    ENDED = auto()


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
        delivery: where its messages go, and how far they are.
        deadline: monotonic seconds.
        only_final: one message, the final (`ask`, or `stream: false`).
        shared: so many of its first messages are the operator's own words.
        holds: why its engine is asked to generate nothing for it now: `pause`, `backlog`.
        paused_until: then it goes on by itself, monotonic seconds.
        ending: decided before the engine was done: a cancel, or the deadline.
        suspected_at: it was running when the engine died, with so many tokens; None = no suspect.
        aside: its engine was asked to let go of it for a while; what still comes from there is passed over.
        resumed: how often it went on after its engine had died.
    """

    uid: int
    key: Key
    request: Request
    model: str
    sampling: Sampling
    digest: bytes
    delivery: Delivery
    arrived: Now
    deadline: float
    only_final: bool
    shared: int = 0
    state: State = State.WAITING
    started: float | None = None
    first_token: float | None = None
    answer: Answer = field(default_factory=Answer)
    holds: set[str] = field(default_factory=set)
    paused_until: float | None = None
    ending: Ending | None = None
    suspected_at: int | None = None
    aside: bool = False
    resumed: int = 0
    _made_way: int = 0
    _begun_with: int = 0
    _fruitless: int = 0
    _died: bool = False
    _tell: Phase | None = None
    _flushed: float | None = None
    _since: float = 0.0
    _progressed: float = float("-inf")

    # --- its way through engines ---

    def begin(self, now: Now) -> Generate:
        """It gets a place in an engine: the order for it, which goes on after the tokens that are there already."""
        self.state = State.RUNNING
        self.aside = False
        self._begun_with = len(self.answer.tokens)
        if self.started is None:
            self.started = now.mono
        if self._died:
            self._died = False
            self.resumed += 1
            self._tell = "paused" if "pause" in self.holds else "resumed"
        request = self.request
        return Generate(
            model=self.model,
            uid=self.uid,
            messages=None if request.raw else tuple((m.role, m.content) for m in request.conversation),
            prompt=request.prompt,
            sampling=self.sampling,
            progress=request.progress,
            generated=tuple(self.answer.tokens),
            crc32=self.answer.crc32,
            owner=self.key.client,
            shared=self.shared,
            exact=request.seed is not None,
        )

    def outlive(self, *, outside: bool) -> Ending | None:
        """Its engine died under it: how it ends; None = it waits to go on in the next one.

        Args:
            outside: the engine was killed from outside: nobody who ran there is to blame, unless it goes on like that.
        """
        if len(self.answer.tokens) != self._begun_with:
            self._fruitless = 0
        elif not self.holds:  # who is held brings no token, whatever kills the engine
            self._fruitless += 1
        if self.ending is not None:
            return self.ending
        if self.is_long_enough:
            return Ending("length")
        if not outside or self._fruitless >= _FRUITLESS:
            if self.suspected_at is not None:
                return _crashed("took the engine down twice", "the engine")
            self.suspected_at = len(self.answer.tokens)
        self._died = True
        self.state = State.WAITING
        return None

    def recall(self, before: Unfinished, now: Now) -> None:
        """Take over what an earlier daemon has said and generated, so that it goes on from there."""
        standing, delivery = before.standing, self.delivery
        for said in before.said:
            if said.tokens:
                if self.first_token is None:
                    at = json.loads(said.payload)["ts"]
                    self.first_token = min(now.mono, max(self.arrived.mono, self.arrived.mono + at - self.arrived.wall))
                self.answer.recall(said.text, said.tokens)
        for piece in before.generated:
            self.answer.recall(piece.text, piece.tokens)
        delivery.said = delivery.written = len(before.said)
        delivery.cursor = delivery.confirmed = max((said.confirmed for said in before.said), default=0)
        self.fare(standing)
        self._died = bool(self.answer.tokens or standing.fruitless or self.suspected)
        if self.answer.tokens:
            self.started = self.first_token if self.first_token is not None else self.arrived.mono

    def fare(self, standing: Standing) -> None:
        """Take over how it fared with earlier engines."""
        self._begun_with = standing.begun_with or 0
        self._fruitless = standing.fruitless
        self.suspected_at = standing.suspected_at
        self.resumed = standing.resumed

    def run_again(self, standing: Standing) -> Ending | None:
        """It begins from the start, after the machine went down: how it ends; None = it waits for its turn."""
        self._fruitless = standing.fruitless + (standing.begun_with is not None)
        if self._fruitless > _FRUITLESS:
            return _crashed(f"was running each of the last {self._fruitless} times that the machine went down", "it")
        return None

    def standing(self, *, begun: bool = True) -> Standing:
        """How it fares with engines, for the journal."""
        return Standing(
            self.uid,
            self.delivery.gen,
            self._begun_with if begun else None,
            self._fruitless,
            self.suspected_at,
            self.resumed,
        )

    def make_way(self) -> None:
        """Its engine has let go of it for the sake of others: it waits to go on."""
        self._made_way += 1
        self.state = State.WAITING

    def ended(self, finished: Finished) -> Ending:
        """How it ends: as the engine says, unless the core had it stopped."""
        if self.ending is not None and (finished.reason in ("cancelled", "error") or self.aside):
            return self.ending
        if finished.reason == "error":
            return Ending("error", Error.of(finished.error or ErrorCode.INTERNAL, finished.message))
        if finished.reason == "length":
            return Ending("length")
        return Ending("cancelled" if finished.reason == "cancelled" else "stop")

    @property
    def suspected(self) -> bool:
        """Whether it may be what killed the engine, and has to prove that it is not."""
        return self.suspected_at is not None

    @property
    def goes_on(self) -> bool:
        """Whether it had begun already, and waits to go on."""
        return self._died

    @property
    def is_long_enough(self) -> bool:
        """Whether it has all the tokens that it may have."""
        return len(self.answer.tokens) >= self.sampling.max_tokens

    # --- text in ---

    def add(self, text: str, tokens: tuple[int, ...], now: Now, held_s: float = 0.0) -> None:
        """Take in generated text and the tokens behind it; enough of them clear a suspect.

        `held_s` is how long it has waited already, seconds.
        """
        if self.first_token is None:
            self.first_token = now.mono
        if not self.answer:
            self._since = now.mono - held_s
        self.answer.add(text, tokens)
        if self.suspected_at is not None and len(self.answer.tokens) >= self.suspected_at + _INNOCENT_TOKENS:
            self.suspected_at = None

    def flush_due(self, *, flush_s: float, flush_tokens: int, max_waiting: int) -> float | None:
        """When the next chunk is due, in monotonic seconds: the first at once.

        None where there is nothing to say, or where it has to wait for a PUBACK.
        """
        if not self.answer:
            return None
        if self.only_final:
            return float("-inf") if self.answer.waiting_tokens >= flush_tokens else None
        if self.delivery.waiting >= max_waiting:
            return None
        if self._flushed is None or self.answer.waiting_tokens >= flush_tokens:
            return float("-inf")
        return min(self._flushed, self._since) + flush_s

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

    def chunk(self, now: Now, *, max_bytes: int = MAX_CHUNK_BYTES) -> tuple[Chunk, tuple[int, ...]] | None:
        """Text that waits, in one message, and the tokens behind it; None where none does."""
        if not self.answer or self.only_final:
            return None
        text, tokens = self.answer.take(max_bytes)
        self._flushed = now.mono
        return Chunk(**self._envelope(now), text=text, n=len(tokens)), tokens

    def piece(self) -> Generated | None:
        """Text that waits and is not to be published by itself, for the journal; None where none does."""
        if not self.answer or not self.only_final:
            return None
        return Generated(self.uid, self.delivery.gen, *self.answer.take(self.answer.waiting_bytes))

    def progress(
        self, phase: Phase, now: Now, *, position: int | None = None, done: int | None = None, total: int | None = None
    ) -> Progress | None:
        """What the request waits for; None where nobody asked, or the last one is too recent or still on its way."""
        wanted = self.request.progress and not self.only_final
        if not wanted or self.delivery.waiting > 1 or now.mono < self._progressed + _PROGRESS_S:
            return None
        self._progressed = now.mono
        return Progress(**self._envelope(now), phase=phase, queue_position=position, done=done, total=total)

    def tell(self, phase: Phase) -> None:
        """Say in a `progress` message that it is in this phase, as soon as one is allowed."""
        self._tell = phase

    def news(self, now: Now) -> Progress | None:
        """What is to be told since `tell`, or since it went on after its engine died; None where nothing is."""
        message = self.progress(self._tell, now) if self._tell is not None else None
        if message is not None:
            self._tell = None
        return message

    def final(
        self, ending: Ending, engine: Finished | None, *, node: str, now: Now, max_bytes: int | None = None
    ) -> Final:
        """The last message; the broker takes so many bytes of it."""
        self.state = State.ENDED
        include = self.request.include_text
        if include is None or self.only_final:
            include = self.only_final or self.answer.bytes <= INCLUDE_TEXT_BYTES
        final = Final(
            **self._envelope(now),
            finish_reason=ending.reason,
            text=self.answer.text if include else None,
            chars=self.answer.chars,
            crc32=self.answer.crc32,
            node=node,
            model=self.model,
            seed=self.sampling.seed,
            usage=Usage(
                prompt_tokens=engine.prompt_tokens if engine else 0,
                cached_tokens=engine.cached_tokens if engine else 0,
                completion_tokens=engine.completion_tokens if engine else len(self.answer.tokens),
            ),
            metrics=self._metrics(engine, now),
            metadata=self.request.metadata,
            error=ending.error,
        )
        if max_bytes is None or not include or len(final.payload()) <= max_bytes:
            return final
        if not self.only_final:
            return final.model_copy(update={"text": None})
        message = (
            f"the answer has {self.answer.bytes} bytes of text, and the broker takes messages of {max_bytes} bytes at "
            "most: ask for a stream, or for fewer tokens"
        )
        error = Error.of(ErrorCode.TOO_LARGE, message)
        return final.model_copy(update={"text": None, "finish_reason": "error", "error": error})

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
        delivery = self.delivery
        return {"id": self.key.id, "gen": delivery.gen, "seq": delivery.said, "ts": round(now.wall, 3)}

    def _metrics(self, engine: Finished | None, now: Now) -> Metrics:
        timings = dict(engine.timings) if engine else {}
        for name in ("prefill_time_ms", "generation_time_ms", "tokens_per_second", "prompt_tokens_per_second"):
            timings.setdefault(name, 0.0)
        timings.setdefault("mean_batch_size", 0.0)
        timings["preemptions"] = timings.get("preemptions", 0) + self._made_way
        queue_ms = _ms((self.started if self.started is not None else now.mono) - self.arrived.mono)
        waited_ms = timings.pop("waited_ms", 0.0)  # for room in the engine
        if not self.resumed and not self._made_way:  # else it was another time, after it had begun
            queue_ms = round(queue_ms + max(0.0, waited_ms), 3)
        first = None if self.first_token is None else _ms(self.first_token - self.arrived.mono)
        return Metrics(
            queue_time_ms=queue_ms,
            time_to_first_token_ms=first,
            e2e_time_ms=_ms(now.mono - self.arrived.mono),
            resumed=self.resumed,
            **timings,
        )


def _crashed(did: str, what: str) -> Ending:
    message = f"this request {did}: do not send it again as it is; the node's log says what {what} died of"
    return Ending("error", Error.of(ErrorCode.CRASHED, message))


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
