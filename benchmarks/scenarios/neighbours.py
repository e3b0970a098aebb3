"""Beside other programs that keep cores busy: with `engine.yield_threads` and without, one node after the other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

from benchmarks.client import Client, Exchange, client
from benchmarks.figures import Middle, ratio
from benchmarks.load import Load
from benchmarks.node import node
from benchmarks.outcome import Outcome, Table, Verdict, bars
from benchmarks.scene import Scene

_PROGRAMS, _QUICK_PROGRAMS = (1, 2), (1,)
_STREAMS, _QUICK_STREAMS = (1, 4, 8), (2,)
_REPEATS, _QUICK_REPEATS = 2, 1
#: All streams generate for so long until the measurement begins, and then for so long: seconds.
_WARM_S, _QUICK_WARM_S = 3.0, 0.5
_LONG_S, _QUICK_LONG_S = 5.0, 1.0
#: What one of the programs does; it ends by itself, whatever becomes of us.
_BUSY = "import time\nend = time.monotonic() + 120\nwhile time.monotonic() < end: pass"
#: Tokens of all answers together, at most: they are cancelled.
_ROOM = 3200
#: Of a prompt.
_NUMBERS = 3
_YIELDS = 1.0
_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Case:
    """So many streams beside so many programs; tokens per second of all streams together, by repeat.

    Attributes:
        programs: each keeps a core busy.
        on, off: with the setting and without.
    """

    programs: int
    streams: int
    on: list[float]
    off: list[float]

    @property
    def ratio(self) -> Middle:
        """With it by without."""
        return ratio(self.on, self.off)


@dataclass(frozen=True, slots=True)
class Neighbours(Outcome):
    """All cases."""

    title: ClassVar[str] = "Beside other programs"

    cases: list[Case]

    def tables(self) -> list[Table]:
        """A row for each."""
        rows = [
            [
                *(str(case.programs), str(case.streams)),
                *(f"{Middle.of(side).median:.1f}" for side in (case.on, case.off)),
                str(case.ratio),
            ]
            for case in self.cases
        ]
        head = ["busy programs", "streams", "engine.yield_threads on", "off", "ratio"]
        return [Table("Tokens/s of all streams together, medians; ratios, median (least to most)", head, rows)]

    def verdicts(self) -> list[Verdict]:
        """Over all cases, it has to be worth it."""
        ratios = [case.ratio.median for case in self.cases]
        what = "tokens/s beside busy programs with engine.yield_threads by those without, median of all cases"
        return [Verdict(what, Middle.of(ratios).median, _YIELDS, least=True)]

    def draw(self, axes: Any) -> None:
        """Both sides of each."""
        sides = [
            (f"{case.programs} busy, {case.streams}: {name}", Middle.of(values).median)
            for case in self.cases
            for name, values in (("on", case.on), ("off", case.off))
        ]
        bars(axes, [name for name, _ in sides], [value for _, value in sides], unit="tokens/s")


def measure(scene: Scene) -> Neighbours:
    """Measure both nodes beside each number of programs.

    Raises:
        BenchmarkError: a request failed.
    """
    programs, streams = (_QUICK_PROGRAMS, _QUICK_STREAMS) if scene.quick else (_PROGRAMS, _STREAMS)
    repeats = _QUICK_REPEATS if scene.quick else _REPEATS
    cases = [Case(busy, n, [], []) for busy in programs for n in streams]
    seeds = count(1)
    with (
        node(scene.settings, scene.place("neighbours-on"), EDGED_ENGINE__YIELD_THREADS="true") as on,
        node(scene.settings, scene.place("neighbours-off"), EDGED_ENGINE__YIELD_THREADS="false") as off,
        client(on) as with_it,
        client(off) as without,
    ):
        for repeat in range(repeats):
            for case in cases:
                sides = [(with_it, case.on), (without, case.off)]
                for me, rates in sides if repeat % 2 == 0 else reversed(sides):
                    rates.append(_rate(scene, me, case, next(seeds)))
                told = f"with {case.on[-1]:.1f} tokens/s, without {case.off[-1]:.1f}"
                print(f"{case.programs} busy programs, {case.streams} streams: {told}", file=sys.stderr)
    return Neighbours(cases)


def _rate(scene: Scene, me: Client, case: Case, seed: int) -> float:
    """Tokens per second of all streams together, from one token to another: a node may stand still for seconds."""
    warm_s, long_s = (_QUICK_WARM_S, _QUICK_LONG_S) if scene.quick else (_WARM_S, _LONG_S)
    load = Load(case.streams, _ROOM // case.streams, seed, numbers=_NUMBERS)
    with _busy(case.programs):
        asked = [me.ask(load.prompt(stream), load.tokens) for stream in range(load.streams)]
        me.until(lambda: all(one.chunks for one in asked), "the beginning of an answer", patience_s=_PATIENCE_S)
        me.within(lambda: False, warm_s)
        began, before = _last(asked)
        me.within(lambda: False, long_s)
        me.until(lambda: _last(asked)[0] > began, "another token", patience_s=_PATIENCE_S)
        ended, after = _last(asked)
    for one in asked:
        me.cancel(one)
    me.finish(asked)
    return (after - before) / (ended - began)


def _last(asked: list[Exchange]) -> tuple[float, int]:
    """When the last token came, and how many have come."""
    return max(one.chunks[-1][0] for one in asked), sum(one.tokens for one in asked)


@contextmanager
def _busy(programs: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(programs):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", _BUSY]))
            stack.callback(process.kill)
        yield
