"""Mixed load: a long prompt arrives while four streams generate. How long do they wait, and how long does it?

Chunks are not rolled up in this scenario (`stream.flush_ms` 0), so that the gaps at the consumer are those between
tokens. The long prompt's own time is what the engine says (`prefill_time_ms`), beside that of another prompt of the
same length on the idle node. That is done several times, each with a node of its own, and the medians of the ratios
count: from minute to minute a machine may change by more than what is to be told.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from benchmarks.client import Client, Exchange, client
from benchmarks.figures import BenchmarkError, Spread
from benchmarks.load import Load, numbers
from benchmarks.machine import most_resident, resident
from benchmarks.node import node
from benchmarks.outcome import Outcome, Table, Verdict
from benchmarks.scene import Form, Scene

_STREAMS, _LONG = 4, 1500
_ROUNDS, _QUICK_ROUNDS, _ATTEMPTS = 5, 1, 3
#: Cells for four streams and the prompt, so that nobody is sent away for want of room.
_CONTEXT = 8192
#: The gaps before are those of so long before the prompt, seconds: the longer the streams are, the longer is a step (by
#: half, from the 50th token of four to the 200th), and that is not to be charged to the prompt.
_BEFORE_S = 1.0
_GAP_RATIO, _PREFILL_RATIO = 2.5, 1.6
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Round:
    """One node, its streams and its long prompt; milliseconds.

    Attributes:
        before_ms: gaps of the streams in the last second in which only they ran.
        while_ms: gaps of the streams while the prompt was computed, and until its second token.
        node_max_itl_ms: the longest gap between tokens of each stream, as its final says, its own beginning included.
        prefill_ms: of the long prompt beside the streams.
        alone_ms: of such a prompt alone.
        ttft_ms: of the long prompt beside the streams, as the consumer sees it.
        memory: the engine's, resident, when the long prompt comes, at most, and at the end. Bytes.
    """

    prompt_tokens: int
    before_ms: list[float]
    while_ms: list[float]
    node_max_itl_ms: list[float]
    prefill_ms: float
    alone_ms: float
    ttft_ms: float
    memory: tuple[int, int, int]

    @property
    def gap_ratio(self) -> float:
        """The longest gap while the prompt was computed by the median before."""
        return max(self.while_ms) / median(self.before_ms)

    @property
    def prefill_ratio(self) -> float:
        """The prompt's time beside the streams by its time alone."""
        return self.prefill_ms / self.alone_ms


@dataclass(frozen=True, slots=True)
class Mixed(Outcome):
    """Rounds by the form of the file."""

    title: ClassVar[str] = f"Mixed load: a prompt of {_LONG} tokens arrives while {_STREAMS} streams generate"

    forms: dict[str, list[Round]]

    def tables(self) -> list[Table]:
        """Gaps and the prompt's times."""
        return [
            Table(
                "Gaps between tokens of the running streams (p50 / p95 / max) and the prompt's prefill, ms",
                [
                    *("file", "prompt", "gaps before", "gaps while", "max while / p50 before"),
                    *("node: max ITL", "prefill alone", "prefill beside", "ratio", "TTFT"),
                ],
                [
                    [
                        *(name, str(one.prompt_tokens), str(Spread.of(one.before_ms)), str(Spread.of(one.while_ms))),
                        *(f"{one.gap_ratio:.2f}", f"{max(one.node_max_itl_ms):.0f}", f"{one.alone_ms:.0f}"),
                        *(f"{one.prefill_ms:.0f}", f"{one.prefill_ratio:.2f}", f"{one.ttft_ms:.0f}"),
                    ]
                    for name, one in self._rounds()
                ],
            ),
            Table(
                "Resident memory of the engine, MiB",
                ["file", "when the prompt comes", "at most", "at the end"],
                [[name, *(f"{size / _MIB:.0f}" for size in one.memory)] for name, one in self._rounds()],
            ),
        ]

    def verdicts(self) -> list[Verdict]:
        """Of the gaps and of the prompt."""
        return [
            verdict
            for name, rounds in self.forms.items()
            for verdict in (
                Verdict(
                    f"{name}: longest gap while the prompt is computed by the median before, median of the rounds",
                    median(one.gap_ratio for one in rounds),
                    _GAP_RATIO,
                ),
                Verdict(
                    f"{name}: the prompt's prefill time by its time alone, median of the rounds",
                    median(one.prefill_ratio for one in rounds),
                    _PREFILL_RATIO,
                ),
            )
        ]

    def draw(self, axes: Any) -> None:
        """How the gaps are spread, before and while, those of all rounds together."""
        for name, rounds in self.forms.items():
            before = [gap for one in rounds for gap in one.before_ms]
            meanwhile = [gap for one in rounds for gap in one.while_ms]
            for label, gaps, line in (("before", before, "--"), ("while", meanwhile, "-")):
                part = [(i + 1) / len(gaps) for i in range(len(gaps))]
                axes.plot(sorted(gaps), part, line, label=f"{name}, {label}")
        axes.set(xlabel="ms between two tokens of a stream", ylabel="part of the gaps", ylim=(0, 1.02))
        axes.set_xlim(left=0)
        axes.legend(fontsize=7)

    def _rounds(self) -> list[tuple[str, Round]]:
        return [(name, one) for name, rounds in self.forms.items() for one in rounds]


def measure(scene: Scene) -> Mixed:
    """Measure each form.

    Raises:
        BenchmarkError: a request failed, or streams ended before the prompt was computed, however often it was tried.
    """
    rounds = range(_QUICK_ROUNDS if scene.quick else _ROUNDS)
    return Mixed({form.name: [_measure(scene, form, number) for number in rounds] for form in scene.forms()})


def _measure(scene: Scene, form: Form, number: int) -> Round:
    context = max(_CONTEXT, form.settings.models[0].context)
    settings = form.with_model(context=context)
    with (
        node(settings, scene.place(f"mixed-{form.name}-{number}"), EDGED_STREAM__FLUSH_MS="0") as served,
        client(served) as me,
    ):
        long = Load(1, 1, 1, numbers=numbers(_LONG))
        alone = me.ask(long.prompt(0), 2)
        me.finish([alone])
        alone_ms = alone.final["metrics"]["prefill_time_ms"]
        for attempt in range(1, _ATTEMPTS + 1):
            streams = [Load(1, 1, 1 + attempt).prompt(stream) for stream in range(_STREAMS)]
            one = _together(me, served.pids["engine"], streams, long.prompt(attempt), alone_ms, scene.seconds)
            if one is not None:
                return one
    raise BenchmarkError(f"{_ATTEMPTS} times a stream ended before the long prompt was computed: nothing was measured")


def gaps_before(running: list[Exchange], begun: float, sent: float) -> list[float]:
    """The gaps of the streams just before the prompt was sent, and after `begun`, milliseconds."""
    return [gap for one in running for gap in one.gaps_ms(max(begun, sent - _BEFORE_S), sent)]


def _together(
    me: Client, engine: int, streams: list[str], prompt: str, alone_ms: float, seconds: float
) -> Round | None:
    """One attempt; None where the model ended a stream by itself before the prompt was computed."""
    room = min(4096, (_CONTEXT - _LONG) // _STREAMS - 128)
    running = [me.ask(stream, room) for stream in streams]
    me.until(lambda: all(one.chunks for one in running), "the first token of every stream")
    begun = time.monotonic()
    me.within(lambda: False, seconds)
    memory_before = resident(engine)
    late = me.ask(prompt, 2)
    # Its second token is its last. When the first comes, its cells are not yet where the others' are: these may wait.
    me.until(lambda: bool(late.final), "the end of the long prompt's answer", patience_s=300)
    ended = time.monotonic()
    have_ended = any(one.final for one in running)
    for one in running:
        if not one.final:
            me.cancel(one)
    me.finish([*running, late])
    if have_ended:
        return None
    metrics = late.final["metrics"]
    before_ms = gaps_before(running, begun, late.sent)
    while_ms = [gap for one in running for gap in one.gaps_ms(late.sent, ended)]
    if not before_ms or not while_ms:
        raise BenchmarkError("no tokens came before or while the long prompt was computed: nothing was measured")
    return Round(
        prompt_tokens=late.final["usage"]["prompt_tokens"],
        before_ms=before_ms,
        while_ms=while_ms,
        node_max_itl_ms=[one.final["metrics"]["max_itl_ms"] for one in running],
        prefill_ms=metrics["prefill_time_ms"],
        alone_ms=alone_ms,
        ttft_ms=late.ttft_ms,
        memory=(memory_before, most_resident(engine), resident(engine)),
    )
