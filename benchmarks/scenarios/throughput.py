"""Throughput: all streams generate, through MQTT and in the bare loop, which have the machine in turns.

The turns are short (see `turns.Turns`), so what else the machine does meets both alike; times are those of each side's
own clock. What is compared: so many sequences of the same lengths, from the same prompts, with the same samplers,
sampled to the same number of tokens; counted is the time in which all of them generate on both sides (see
`figures.in_both`). With the node, the prompts of late streams are computed while early ones generate already, by
design; so decoding alone is counted, and beside it everything from the first request to the last token.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from benchmarks.children import Loop, bare_loop, consume, consumer
from benchmarks.consumer import Order
from benchmarks.figures import (
    BenchmarkError,
    Figures,
    NeverTogetherError,
    in_both,
    long_enough,
    of_bare,
    of_node,
    replies,
)
from benchmarks.load import Load, Setup
from benchmarks.machine import await_quiet
from benchmarks.node import NAME, ONLINE_S, node
from benchmarks.rates import Repeat, Series, Throughput
from benchmarks.scene import Form, Scene
from benchmarks.turns import TURN_S, Clock, Turns
from edged.engine.files import describe

#: Of a prompt: short ones, because what is wanted here comes after all of them.
_NUMBERS = 3
#: Turns of each side in one measurement, at least.
_TURNS = 8
#: Tokens of each answer in the turnover, where requests follow each other.
_SHORT = 32
#: Cells of the KV cache that are left for the scheduler's reserve, for each stream.
_SPARE = 64
#: Cells of the KV cache that each stream gets at least, where the model was trained for so many.
_CELLS = 512
#: Short runs by which the length of the others is judged.
_TRIALS = 3


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
        return measure_all(bench, lengths, scene.repeats, scene.patience_s)


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
        loads = [Load(streams, 16, self._seed(), numbers=_NUMBERS) for _ in range(_TRIALS)]
        runs = [self.bare.run(load, patience_s=self._patience_s) for load in loads]
        figures = [of_bare(**run, streams=streams) for run in runs]
        # While the prompts of late streams are computed in pieces, early ones generate already: each must outlast that.
        least = 16 + 8 * streams
        most = (room - figures[0].prompt_tokens) // streams - _SPARE
        if most < least:
            raise BenchmarkError(
                f"{streams} streams have no room in a context of {room} tokens: configure a larger one"
            )
        best = max(f.tokens_per_s for f in figures)
        return max(least, min(most, round(self.seconds * best / streams)))

    def repeat(self, streams: int, tokens: int, *, bare_first: bool) -> Repeat:
        """Measure both sides in turns, and then the node alone with requests that come one after the other."""
        bare, node, cpus, waits = long_enough(lambda: self._both(streams, tokens, bare_first=bare_first))
        # As long as takes every client past its first turn, which waits for the prompts of all others.
        turnover_s = max(1.2 * self.seconds, 2 * max(node.ttft_ms) / 1000)
        turnover = long_enough(lambda: self._alone(streams, min(tokens, _SHORT), turnover_s))
        return Repeat(streams, tokens, bare, node, turnover, cpus, waits)

    def _both(
        self, streams: int, tokens: int, *, bare_first: bool
    ) -> tuple[Figures, Figures, dict[str, float], dict[str, float]]:
        """Both sides in turns: the figures of each, processors in use, and threads that waited for one."""
        load = Load(streams, tokens, self._seed(), numbers=_NUMBERS)
        sides = {"bare": [self.bare.pid], "node": list(self.pids.values())}
        if not bare_first:
            sides = dict(reversed(sides.items()))
        order = Order(self.port, NAME, load, self._patience_s, {**self.pids, "bare": self.bare.pid})
        with consumer(order) as one:
            with Turns(sides, min(TURN_S, self.seconds / _TURNS)) as turns:
                self.bare.say(asdict(load))
                one.start()
                record = one.record()
            run = self.bare.hear(self._patience_s)
        answers = replies(record.sent, record.messages)
        begins, ends = in_both(answers, (run["marks"][0], run["marks"][-1]))
        ours, theirs = turns.clocks["node"], turns.clocks["bare"]
        if not min(clock.at(ends) - clock.at(begins) for clock in (ours, theirs)):
            raise NeverTogetherError(
                "all streams generated for less than a turn: longer answers are needed (--seconds)"
            )
        return (
            of_bare(
                started=theirs.at(run["started"]),
                marks=[theirs.at(mark) for mark in run["marks"]],
                prompt_tokens=run["prompt_tokens"],
                streams=load.streams,
                window=(theirs.at(begins), theirs.at(ends)),
            ),
            of_node([reply.by(ours.at) for reply in answers], (ours.at(begins), ours.at(ends))),
            _in_its_turns(record.cpus, ours, theirs, record.began, record.ended),
            _in_its_turns(record.waits, ours, theirs, record.began, record.ended),
        )

    def _alone(self, streams: int, tokens: int, turnover_s: float) -> Figures:
        load = Load(streams, tokens, self._seed(), turnover_s=turnover_s, numbers=_NUMBERS)
        record = consume(Order(self.port, NAME, load, self._patience_s))
        return of_node(replies(record.sent, record.messages))

    @property
    def _patience_s(self) -> float:
        return 120 + 20 * self.seconds

    def _seed(self) -> int:
        self.seed += 1
        return self.seed


def _in_its_turns(used: dict[str, float], ours: Clock, theirs: Clock, began: float, ended: float) -> dict[str, float]:
    """Averages over some time as ones over the part of it that was a side's own; of `others` as they were."""
    parts = {"others": 1.0, "bare": (theirs.at(ended) - theirs.at(began)) / (ended - began)}
    part = (ours.at(ended) - ours.at(began)) / (ended - began)
    return {name: value / parts.get(name, part) for name, value in used.items()}


def measure_all(bench: Bench, lengths: Mapping[int, int], repeats: int, patience_s: float) -> Series:
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
        f"processors that others used: {repeat.cpus['others']:.2f}",
        file=sys.stderr,
    )
    return repeat
