"""Throughput: all streams generate, through MQTT and in the bare loop, which take turns in one run.

So what else the machine does meets both alike, and the ratio is taken of neighbouring measurements. A side that waits
uses no processor. What is compared: so many sequences of the same lengths, from the same prompts, with the same
samplers, sampled to the same number of tokens; counted is the time in which all of them generate (see
`figures.Figures`). With the node, the prompts of late streams are computed while early ones generate already, by
design; so decoding alone is counted, where all streams run and the context is equally deep on both sides, and beside
it everything from the first request to the last token.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.children import Loop, bare_loop, consume
from benchmarks.consumer import Order
from benchmarks.figures import BenchmarkError, EndedEarlyError, Figures, NeverTogetherError, of_bare, of_node, replies
from benchmarks.load import Load, Setup
from benchmarks.machine import Cpu, await_quiet
from benchmarks.node import NAME, ONLINE_S, node
from benchmarks.rates import Repeat, Series, Throughput
from benchmarks.scene import Form, Scene
from edged.engine.files import describe

#: Tokens of each answer in the turnover, where requests follow each other.
_SHORT = 32
#: Cells of the KV cache that are left for the scheduler's reserve, for each stream.
_SPARE = 64
#: Cells of the KV cache that each stream gets at least, where the model was trained for so many.
_CELLS = 512
#: Short runs by which the length of the others is judged.
_TRIALS = 3
#: So many times a measurement is repeated in which the model ended an answer before its length was reached.
_ATTEMPTS = 3


def measure(scene: Scene) -> Throughput:
    """Measure both sides of every form in turns.

    Raises:
        BenchmarkError: a measurement failed.
    """
    most = max(scene.streams)
    forms = {}
    for form in scene.forms():
        model = form.settings.models[0]
        context = max(model.context, min(_CELLS * most, describe(form.file).context or 0))
        settings = form.with_model(parallel=max(most, model.parallel), context=context)
        forms[form.name] = _measure(scene, replace(form, settings=settings))
    return Throughput(forms)


def _measure(scene: Scene, form: Form) -> Series:
    model, place = form.settings.models[0], scene.place(f"throughput-{form.name}")
    with node(form.settings, place) as served, bare_loop(Setup.of(form.settings), place) as bare:
        # The first answer: when it is here, the model is loaded and everything has been used once.
        consume(Order(served.port, NAME, Load(1, 4, 0), ONLINE_S))
        bench = Bench(bare, served.port, scene.seconds, served.pids)
        lengths = {n: min(form.settings.limits.max_tokens, bench.tokens(n, model.context)) for n in scene.streams}
        return take_turns(bench, lengths, scene.repeats, scene.patience_s)


@dataclass(slots=True)
class Bench:
    """Both sides, ready to be measured."""

    bare: Loop
    port: int
    seconds: float
    pids: dict[str, int]
    seed: int = 0

    def tokens(self, streams: int, room: int) -> int:
        """Tokens that keep so many streams busy for the wanted time, at most what `room` cells of cache hold.

        Judged by the best of a few short runs: one that somebody disturbed would make all that follow too short.
        """
        runs = [self.bare.run(Load(streams, 16, self._seed()), patience_s=self._patience_s) for _ in range(_TRIALS)]
        figures = [of_bare(**run, streams=streams) for run in runs]
        # While the prompts of late streams are computed in pieces, early ones generate already: each must outlast that.
        least = 16 + 12 * streams
        most = (room - figures[0].prompt_tokens) // streams - _SPARE
        if most < least:
            raise BenchmarkError(
                f"{streams} streams have no room in a context of {room} tokens: configure a larger one"
            )
        best = max(f.tokens_per_s for f in figures)
        return max(least, min(most, round(self.seconds * best / streams)))

    def repeat(self, streams: int, tokens: int, *, bare_first: bool) -> Repeat:
        """Measure each side once."""
        sides = [self._bare, self._node] if bare_first else [self._node, self._bare]
        measured = {side.__name__: side(Load(streams, tokens, self._seed())) for side in sides}
        (bare, bare_cpus, bare_waits), (node, cpus, waits) = measured["_bare"], measured["_node"]
        # As long as takes every client past its first turn, which waits for the prompts of all others.
        turnover_s = max(1.2 * self.seconds, 2 * max(node.ttft_ms) / 1000)
        turnover, *_ = self._node(Load(streams, min(tokens, _SHORT), self._seed(), turnover_s=turnover_s))
        cpus["bare_others"] = bare_cpus["others"]
        return Repeat(streams, tokens, bare, node, turnover, cpus, {**waits, **bare_waits})

    def _bare(self, load: Load) -> tuple[Figures, dict[str, float], dict[str, float]]:
        pids = {"bare": self.bare.pid}
        before, started = Cpu.now(pids), time.monotonic()
        run = self.bare.run(load, patience_s=self._patience_s)
        after, seconds = Cpu.now(pids), time.monotonic() - started
        cpus, waits = after.since(before, seconds=seconds), after.waits(before, seconds=seconds)
        return of_bare(**run, streams=load.streams), cpus, waits

    def _node(self, load: Load) -> tuple[Figures, dict[str, float], dict[str, float]]:
        for attempt in range(_ATTEMPTS):
            record = consume(Order(self.port, NAME, load, self._patience_s, self.pids))
            try:
                return of_node(replies(record.sent, record.messages)), record.cpus, record.waits
            except EndedEarlyError:
                if attempt + 1 == _ATTEMPTS:
                    raise
                load = replace(load, seed=self._seed())
        raise AssertionError("the last attempt returns or raises")

    @property
    def _patience_s(self) -> float:
        return 120 + 20 * self.seconds

    def _seed(self) -> int:
        self.seed += 1
        return self.seed


def take_turns(bench: Bench, lengths: Mapping[int, int], repeats: int, patience_s: float) -> Series:
    """Measure every number of streams so often; `lengths` are the tokens of an answer, by number of streams.

    Raises:
        BenchmarkError: a request failed; or nothing could be measured at all.
    """
    measured: list[Repeat] = []
    lost: list[str] = []
    for number in range(repeats):
        for streams, tokens in lengths.items():
            began = time.monotonic()
            try:
                repeat = _tell(f"repeat {number + 1}", bench.repeat(streams, tokens, bare_first=number % 2 == 0))
                while repeat.disturbed and patience_s > 0:
                    began = time.monotonic()
                    await_quiet(patience_s)
                    repeat = _tell("again", bench.repeat(streams, tokens, bare_first=number % 2 == 0))
                    patience_s -= time.monotonic() - began
            except NeverTogetherError as error:
                lost.append(f"repeat {number + 1}, {streams} streams: {error}")
                patience_s -= time.monotonic() - began
            else:
                measured.append(repeat)
    if not measured:
        raise BenchmarkError(lost[0])
    return Series(tuple(measured), tuple(lost))


def _tell(what: str, repeat: Repeat) -> Repeat:
    """Show progress, and hand on what came."""
    bare, node = repeat.bare.tokens_per_s, repeat.node.tokens_per_s
    print(
        f"{what}, {repeat.streams} streams: bare {bare:.1f} tokens/s, edged {node:.1f}, ratio {node / bare:.3f}; "
        f"processors that others used: {repeat.cpus['bare_others']:.2f}, {repeat.cpus['others']:.2f}",
        file=sys.stderr,
    )
    return repeat
