"""Beside `llama_cpp.Llama`, the library's high-level interface, on the same file with the same threads.

One stream: tokens per second and time to first token. Four requests: it generates them one after the other, the node
together; told is how long all of them took. The sides take turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks.children import Loop, high_level
from benchmarks.client import Client, client
from benchmarks.figures import Middle
from benchmarks.load import Load, Setup
from benchmarks.node import node
from benchmarks.outcome import Outcome, Table, Verdict, bars
from benchmarks.scene import Scene

_TOGETHER = 4
_TOKENS, _QUICK_TOKENS = 160, 48
_PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Side:
    """Of one repeat.

    Attributes:
        tokens_per_s: of one stream, from its first token to its last.
        ttft_ms: of that stream, milliseconds.
        together_per_s: of four requests: all tokens by the time from the first request to the last token.
    """

    tokens_per_s: float
    ttft_ms: float
    together_per_s: float


@dataclass(frozen=True, slots=True)
class HighLevel(Outcome):
    """Both sides, repeat by repeat."""

    title: ClassVar[str] = "Beside llama_cpp.Llama, the high-level interface"

    tokens: int
    theirs: list[Side]
    node: list[Side]

    def _row(self, what: str, name: str) -> list[str]:
        library, node = ([float(getattr(one, name)) for one in side] for side in (self.theirs, self.node))
        ratio = Middle.of([ours / theirs for ours, theirs in zip(node, library, strict=True)])
        return [what, f"{Middle.of(library).median:.1f}", f"{Middle.of(node).median:.1f}", str(ratio)]

    def tables(self) -> list[Table]:
        """Side by side."""
        return [
            Table(
                f"{self.tokens} tokens each; medians, ratios of neighbours: median (least to most)",
                ["", "llama_cpp.Llama", "edged, through MQTT", "edged / Llama"],
                [
                    self._row("1 stream: tokens/s", "tokens_per_s"),
                    self._row("1 stream: TTFT, ms", "ttft_ms"),
                    self._row(f"{_TOGETHER} requests: tokens/s in all", "together_per_s"),
                ],
            )
        ]

    def verdicts(self) -> list[Verdict]:
        """Four requests together are quicker than one after the other."""
        ratio = Middle.of([a.together_per_s / b.together_per_s for a, b in zip(self.node, self.theirs, strict=True)])
        what = f"tokens/s of {_TOGETHER} requests together by those of llama_cpp.Llama one after the other"
        return [Verdict(what, ratio.median, 1.0, least=True)]

    def draw(self, axes: Any) -> None:
        """Rates of both."""
        names, values = [], []
        for what, name in (("1 stream", "tokens_per_s"), (f"{_TOGETHER} requests", "together_per_s")):
            for who, side in (("Llama", self.theirs), ("edged", self.node)):
                names.append(f"{what}: {who}")
                values.append(Middle.of([float(getattr(one, name)) for one in side]).median)
        bars(axes, names, values, unit="tokens/s")


def measure(scene: Scene) -> HighLevel:
    """Measure both sides in turns.

    Raises:
        BenchmarkError: a side failed.
    """
    tokens, place = _QUICK_TOKENS if scene.quick else _TOKENS, scene.place("highlevel")
    setup = Setup.of(scene.settings)
    library, ours = [], []
    with node(scene.settings, place) as served, high_level(setup, place) as loop, client(served) as me:
        loop.run(Load(1, 4, 0), patience_s=_PATIENCE_S)  # everything has been used once, as on the other side
        for seed in range(1, 1 + (1 if scene.quick else scene.repeats)):
            library.append(_library(loop, tokens, seed))
            ours.append(_node(me, tokens, seed))
    return HighLevel(tokens, library, ours)


def _library(loop: Loop, tokens: int, seed: int) -> Side:
    """Tokens are counted as they came: it may end an answer early."""
    (one,) = loop.run(Load(1, tokens, seed), patience_s=_PATIENCE_S).values()
    all_of_them = loop.run(Load(_TOGETHER, tokens, seed + 1000), patience_s=_PATIENCE_S).values()
    return Side(
        tokens_per_s=(len(one) - 2) / (one[-1] - one[1]),
        ttft_ms=(one[1] - one[0]) * 1000,
        together_per_s=sum(len(times) - 1 for times in all_of_them)
        / (max(times[-1] for times in all_of_them) - min(times[0] for times in all_of_them)),
    )


def _node(me: Client, tokens: int, seed: int) -> Side:
    one = me.ask(Load(1, tokens, seed).prompt(0), tokens)
    me.finish([one])
    load = Load(_TOGETHER, tokens, seed + 1000)
    asked = [me.ask(load.prompt(stream), tokens) for stream in range(_TOGETHER)]
    me.finish(asked)
    return Side(
        tokens_per_s=(one.tokens - one.chunks[0][1]) / (one.chunks[-1][0] - one.chunks[0][0]),
        ttft_ms=one.ttft_ms,
        together_per_s=sum(each.tokens for each in asked)
        / (max(each.ended for each in asked) - min(each.sent for each in asked)),
    )
