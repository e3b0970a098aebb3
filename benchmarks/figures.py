"""From what was noted to figures. Pure: no I/O, no clock."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeVar

#: So many times a measurement is made in which the model ended an answer before its length was reached.
_ATTEMPTS = 3


class BenchmarkError(Exception):
    """A measurement failed, or what came of it is no measurement; the message says why."""


class EndedEarlyError(BenchmarkError):
    """The model ended an answer before it was as long as it should be: the sides would do different work."""


class NeverTogetherError(BenchmarkError):
    """At no time all streams generated, because somebody else kept the machine busy, or answers were too short."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Of `count` values the median, the 95th percentile (nearest rank) and the greatest; zeros where there are none."""

    p50: float = 0.0
    p95: float = 0.0
    most: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of any values, in their unit."""
        ordered = sorted(values)
        if not ordered:
            return cls()
        rank = -(-len(ordered) * 95 // 100) - 1
        return cls(statistics.median(ordered), ordered[rank], ordered[-1], len(ordered))

    def __str__(self) -> str:
        return f"{self.p50:.0f} / {self.p95:.0f} / {self.most:.0f}" if self.count else "-"


@dataclass(slots=True)
class Reply:
    """One request, as its consumer saw it.

    Attributes:
        stream: number of the client.
        sent: when it was published, seconds.
        chunks: when a chunk came, seconds, and its tokens.
        ended: when the final came, seconds.
        final: that message.
    """

    stream: int
    sent: float
    chunks: list[tuple[float, int]] = field(default_factory=list)
    ended: float = 0.0
    final: dict[str, Any] = field(default_factory=dict)

    def by(self, clock: Callable[[float], float]) -> Reply:
        """The same by another clock; `clock` tells its time at a time of this one's."""
        chunks = [(clock(at), n) for at, n in self.chunks]
        return replace(self, sent=clock(self.sent), chunks=chunks, ended=clock(self.ended))


@dataclass(frozen=True, slots=True)
class Figures:
    """What one measurement says.

    The window is time in which all streams generate: from the first token of the last of them to the end of the first
    one, or a part of that. Tokens of other times are not counted, gaps of other times neither.

    Attributes:
        window_s: its length, seconds.
        tokens_per_s: of all streams together, in the window.
        overall_per_s: all tokens by all the time, from the first request (or prompt) to the last token.
        requests: answers that were taken into account.
        prompt_tokens: of them all.
        ttft_ms: from PUBLISH to the first chunk, of requests sent before the window.
        later_ttft_ms: the same, of requests sent in the window.
        gaps_ms: between one chunk (or, without MQTT, token) of a stream and the next.
        node_ttft_ms, node_itl_ms, node_p95_itl_ms, node_max_itl_ms: from the finals' metrics, one value a request.
    """

    window_s: float
    tokens_per_s: float
    overall_per_s: float
    requests: int
    prompt_tokens: int
    ttft_ms: list[float] = field(default_factory=list)
    later_ttft_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)
    node_ttft_ms: list[float] = field(default_factory=list)
    node_itl_ms: list[float] = field(default_factory=list)
    node_p95_itl_ms: list[float] = field(default_factory=list)
    node_max_itl_ms: list[float] = field(default_factory=list)


def replies(sent: dict[str, float], messages: Iterable[tuple[float, str]]) -> list[Reply]:
    """Sort messages by request.

    Args:
        sent: when each request was published; their ids are SEED-STREAM-TURN.
        messages: when each message came, and its payload.

    Raises:
        EndedEarlyError: the model ended an answer.
        BenchmarkError: a reply is not complete, or ended in an error.
    """
    found = {id_: Reply(int(id_.split("-")[1]), at) for id_, at in sent.items()}
    expected = dict.fromkeys(found, 0)
    for at, payload in messages:
        message = json.loads(payload)
        id_ = message["id"]
        if id_ not in found:
            continue  # of a measurement that was given up
        reply = found[id_]
        if message["type"] == "final":
            _check_end(message)
        if message["seq"] != expected[id_]:
            raise BenchmarkError(f"request {id_}: message {message['seq']} came where {expected[id_]} was due")
        expected[id_] += 1
        if message["type"] == "chunk":
            reply.chunks.append((at, message["n"]))
        elif message["type"] == "final":
            reply.ended, reply.final = at, message
    missing = [id_ for id_, reply in found.items() if not reply.final or not reply.chunks]
    if missing:
        raise BenchmarkError(f"no text or no end came for {', '.join(missing)}")
    return list(found.values())


def _check_end(final: dict[str, Any]) -> None:
    reason = final["finish_reason"]
    if reason == "stop":
        tokens = final["usage"]["completion_tokens"]
        raise EndedEarlyError(f"the model ended request {final['id']} by itself after {tokens} tokens")
    if reason != "length":
        why = final.get("error", {}).get("message", "no reason was given")
        raise BenchmarkError(f"request {final['id']} ended with {reason!r}: {why}")


Window = tuple[float, float]


def together(answers: Sequence[Reply]) -> Window:
    """When all streams generated: from the first chunk of the last of them to the end of the first one.

    Raises:
        NeverTogetherError: at no time.
    """
    streams = {reply.stream for reply in answers}
    begins = max(min(r.chunks[0][0] for r in answers if r.stream == stream) for stream in streams)
    ends = min(max(r.ended for r in answers if r.stream == stream) for stream in streams)
    if ends <= begins:
        raise NeverTogetherError("one stream ended before another had begun: longer answers are needed (--seconds)")
    return begins, ends


def in_both(answers: Sequence[Reply], other: Window) -> Window:
    """When all streams of both sides generated, which work at the same time; from one chunk of a stream to another.

    As tokens come in chunks, and those of all streams in a burst, any other beginning or end would count a part of what
    was generated before it, or pass over a part of it.

    Args:
        answers: the one side's.
        other: when all streams of the other side generated.

    Raises:
        NeverTogetherError: at no time.
    """
    begins, ends = together(answers)
    begins, ends = max(begins, other[0]), min(ends, other[1])
    first = min(answers, key=lambda reply: reply.stream)
    between = [at for at, _ in first.chunks if begins <= at <= ends]
    if len(between) < 2:
        raise NeverTogetherError("one side ended before the other had begun: longer answers are needed (--seconds)")
    return between[0], between[-1]


def of_node(answers: Sequence[Reply], window: Window | None = None) -> Figures:
    """What the consumers of some replies saw, in a window or as long as all streams generated.

    Raises:
        NeverTogetherError: at no time did all streams generate.
    """
    begins, ends = window or together(answers)
    if ends <= begins:
        raise NeverTogetherError("one side had no turn while the other generated: longer answers are needed")
    chunks = [chunk for reply in answers for chunk in reply.chunks]
    first, last = min(reply.sent for reply in answers), max(reply.ended for reply in answers)
    metrics = [reply.final["metrics"] for reply in answers]
    ttft = [(reply.sent, (reply.chunks[0][0] - reply.sent) * 1000) for reply in answers]
    return Figures(
        window_s=ends - begins,
        tokens_per_s=sum(n for at, n in chunks if begins < at <= ends) / (ends - begins),
        overall_per_s=sum(reply.final["usage"]["completion_tokens"] for reply in answers) / (last - first),
        requests=len(answers),
        prompt_tokens=sum(reply.final["usage"]["prompt_tokens"] for reply in answers),
        ttft_ms=[value for sent, value in ttft if sent <= begins],
        later_ttft_ms=[value for sent, value in ttft if begins < sent <= ends],
        gaps_ms=[(b - a) * 1000 for r in answers for (a, _), (b, _) in pairwise(r.chunks) if begins <= a and b <= ends],
        node_ttft_ms=[m["time_to_first_token_ms"] for m in metrics],
        node_itl_ms=[m["mean_itl_ms"] for m in metrics],
        node_p95_itl_ms=[m["p95_itl_ms"] for m in metrics],
        node_max_itl_ms=[m["max_itl_ms"] for m in metrics],
    )


def of_bare(
    *, started: float, marks: Sequence[float], prompt_tokens: int, streams: int, window: Window | None = None
) -> Figures:
    """What the bare loop did, in a window or from its first tokens on; its arguments are those of `bare.BareRun`."""
    begins, ends = window or (marks[0], marks[-1])
    return Figures(
        window_s=ends - begins,
        tokens_per_s=streams * _steps(marks, begins, ends) / (ends - begins),
        overall_per_s=streams * len(marks) / (marks[-1] - started),
        requests=streams,
        prompt_tokens=prompt_tokens,
        ttft_ms=[(marks[0] - started) * 1000] * streams,
        gaps_ms=[(b - a) * 1000 for a, b in pairwise(marks) if begins <= a and b <= ends],
    )


def _steps(marks: Sequence[float], begins: float, ends: float) -> float:
    """How many of the steps that end at the marks lie between two times; of one that lies there in part, that part."""
    return sum(max(0.0, min(b, ends) - max(a, begins)) / (b - a) for a, b in pairwise(marks) if a < b)


_T = TypeVar("_T")


def long_enough(measure: Callable[[], _T], *excuses: type[BenchmarkError]) -> _T:
    """What a measurement says, which is repeated a few times where the model ends an answer early; with other seeds.

    Args:
        measure: the measurement.
        excuses: what else it is repeated for.

    Raises:
        EndedEarlyError: it always did.
    """
    for _ in range(_ATTEMPTS - 1):
        with suppress(EndedEarlyError, *excuses):
            return measure()
    return measure()


@dataclass(frozen=True, slots=True)
class Middle:
    """The median of some repeats, and their extremes."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Middle:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.most:.3g})"


def ratio(ours: Sequence[float], limit: Sequence[float]) -> Middle:
    """What part of the limit was reached: of the ratios of each repeat, not of the medians.

    The two values of a repeat were measured one right after the other, so that what else the machine did then is in
    both of them.
    """
    return Middle.of([a / b for a, b in zip(ours, limit, strict=True)])
