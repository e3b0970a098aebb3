"""Cancel latency: a long prompt is cancelled in the middle of its prefill, while two neighbours generate.

Counted is the time from the publication of `cancel` to the arrival of the final. The neighbours have to end right:
whole, in order and proved by the final's CRC. Their texts are not compared with those of another run: which tokens are
likeliest depends on the shape of the batch, in its last bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks.client import Client, Exchange, client
from benchmarks.figures import BenchmarkError, Spread
from benchmarks.load import Load, numbers
from benchmarks.node import node
from benchmarks.outcome import Outcome, Table, Verdict, bars
from benchmarks.scene import Scene

_LONG, _NEIGHBOURS, _TOKENS = 2000, 2, 120
_REPEATS, _QUICK_REPEATS = 8, 2
_LATENCY_MS = 150.0
#: The prompt is cancelled when the node has told of so many of its tokens.
_BEGUN = 200
#: So often it is tried again when the whole prompt was computed before the cancel came.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class CancelLatency(Outcome):
    """One value for each cancelled request.

    Attributes:
        latency_ms: from the publication of `cancel` to the final, milliseconds.
        prefilled: tokens of the prompt that were computed when it was published, as the node had told.
        prompt_tokens: of the long prompt.
        neighbours: requests that ran beside, all of which ended right.
    """

    title: ClassVar[str] = f"Cancel in the middle of a prefill of {_LONG} tokens, beside {_NEIGHBOURS} streams"

    latency_ms: list[float]
    prefilled: list[int]
    prompt_tokens: int
    neighbours: int

    def tables(self) -> list[Table]:
        """The spread."""
        return [
            Table(
                "From `cancel` to the final, ms (p50 / p95 / max)",
                ["prompt", "computed when cancelled", "cancelled", "latency", "neighbours that ended right"],
                [
                    [
                        *(str(self.prompt_tokens), f"{min(self.prefilled)} to {max(self.prefilled)}"),
                        *(str(len(self.latency_ms)), str(Spread.of(self.latency_ms)), str(self.neighbours)),
                    ]
                ],
            )
        ]

    def verdicts(self) -> list[Verdict]:
        """Of the longest."""
        return [Verdict("longest time from cancel to the final", max(self.latency_ms), _LATENCY_MS, "ms")]

    def draw(self, axes: Any) -> None:
        """Each of them."""
        names = [str(i + 1) for i in range(len(self.latency_ms))]
        bars(axes, names, self.latency_ms, unit="ms from cancel to the final", limit=_LATENCY_MS)


def measure(scene: Scene) -> CancelLatency:
    """Cancel several prompts, one after the other.

    Raises:
        BenchmarkError: a neighbour did not end right, or the prompts were computed too fast to be cancelled.
    """
    form = scene.form
    settings = form.with_model(context=max(form.settings.models[0].context, 4096))
    with node(settings, scene.place("cancel")) as served, client(served) as me:
        cancelled = [_cancelled(me, turn) for turn in range(_QUICK_REPEATS if scene.quick else _REPEATS)]
    return CancelLatency(
        latency_ms=[(one.ended - at) * 1000 for one, at, _ in cancelled],
        prefilled=[done for *_, done in cancelled],
        prompt_tokens=cancelled[0][0].final["usage"]["prompt_tokens"],
        neighbours=_NEIGHBOURS * len(cancelled),
    )


def _cancelled(me: Client, turn: int) -> tuple[Exchange, float, int]:
    """A request that was cancelled in its prefill, when, and how many tokens of its prompt were computed then."""
    for attempt in range(_ATTEMPTS):
        long, at, done = _attempt(me, turn * _ATTEMPTS + attempt)
        if long.final["finish_reason"] == "cancelled" and not long.chunks:
            return long, at, done
    raise BenchmarkError(f"a prompt of {_LONG} tokens was computed before it could be cancelled, {_ATTEMPTS} times")


def _attempt(me: Client, seed: int) -> tuple[Exchange, float, int]:
    neighbours = [me.ask(Load(1, 1, seed).prompt(i), _TOKENS, temperature=0) for i in range(_NEIGHBOURS)]
    me.until(lambda: all(one.chunks or one.final for one in neighbours), "the neighbours' first token")
    long = me.ask(Load(1, 1, seed, numbers=numbers(_LONG)).prompt(9), 16, progress=True)
    me.until(lambda: bool(long.prefilled >= _BEGUN or long.chunks or long.final), "the long prompt's progress")
    at, done = me.cancel(long), long.prefilled
    me.finish([long, *neighbours])
    for one in neighbours:
        if one.final["finish_reason"] not in {"length", "stop"}:
            raise BenchmarkError(f"a neighbour of a cancelled request ended with {one.final['finish_reason']!r}")
    return long, at, done
