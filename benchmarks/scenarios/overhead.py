"""Python in the engine's process: what part of a step is spent outside of llama.cpp.

The engine is the daemon's own, started as the daemon does it, without daemon and broker around: see `steps.py`. A step
is what lies between two calls of `llama_decode`; counted are those in which every stream computes one token.
"""

from __future__ import annotations

import json
import queue
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.figures import BenchmarkError, Spread
from benchmarks.load import Load, Setup
from benchmarks.node import ONLINE_S
from benchmarks.outcome import Outcome, Table, Verdict, bars
from benchmarks.scene import Scene
from edged.engine import protocol
from edged.engine.process import EngineProcess, Lost

_STREAMS = (1, 4, 8)
_TOKENS, _QUICK_TOKENS = 150, 40
_REST_PART = 0.05
_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of so many streams; milliseconds."""

    step_ms: list[float]
    rest_ms: list[float]

    @property
    def part(self) -> float:
        """What was not spent in llama.cpp, of all the time."""
        return sum(self.rest_ms) / sum(self.step_ms)


@dataclass(frozen=True, slots=True)
class Overhead(Outcome):
    """By the number of streams."""

    title: ClassVar[str] = "The engine's process: time outside of llama.cpp"

    streams: dict[int, Steps]

    def tables(self) -> list[Table]:
        """Of a step."""
        return [
            Table(
                "A step, ms",
                ["streams", "steps", "median", "of which llama.cpp", "the rest", "rest, worst", "rest of all the time"],
                [
                    [
                        *(str(n), str(len(one.step_ms)), f"{Spread.of(one.step_ms).p50:.2f}"),
                        f"{Spread.of(a - b for a, b in zip(one.step_ms, one.rest_ms, strict=True)).p50:.2f}",
                        *(f"{Spread.of(one.rest_ms).p50:.3f}", f"{Spread.of(one.rest_ms).most:.3f}"),
                        f"{one.part:.2%}",
                    ]
                    for n, one in self.streams.items()
                ],
            )
        ]

    def verdicts(self) -> list[Verdict]:
        """Of each number of streams."""
        return [
            Verdict(f"{n} streams: part of a step outside of llama.cpp", one.part, _REST_PART)
            for n, one in self.streams.items()
        ]

    def draw(self, axes: Any) -> None:
        """The parts."""
        names = [f"{n} streams" for n in self.streams]
        values = [100 * one.part for one in self.streams.values()]
        bars(axes, names, values, unit="% of a step outside of llama.cpp", limit=100 * _REST_PART)

    @staticmethod
    def of(streams: int, decodes: list[tuple[float, float, int]]) -> Steps:
        """Tell the steps of so many streams from the rest of what `steps.py` noted.

        Raises:
            BenchmarkError: there are none.
        """
        pairs = [(a, b) for a, b in pairwise(decodes) if a[2] == b[2] == streams]
        if not pairs:
            raise BenchmarkError(f"at no time {streams} streams generated together")
        steps = [(b[0] - a[0]) * 1000 for a, b in pairs]
        return Steps(steps, [step - (b[1] - a[1]) * 1000 for step, (a, b) in zip(steps, pairs, strict=True)])


def measure(scene: Scene) -> Overhead:
    """Have an engine of its own generate for each number of streams.

    Raises:
        BenchmarkError: the engine failed.
    """
    setup = Setup.of(scene.settings)
    found = {}
    for streams in (n for n in _STREAMS if n <= setup.load["parallel"]):
        file = scene.place("overhead") / f"{streams}.json"
        with _engine(setup, file) as reports:
            _generate(reports, setup, Load(streams, _QUICK_TOKENS if scene.quick else _TOKENS, 1))
        found[streams] = Overhead.of(streams, [tuple(one) for one in json.loads(file.read_text())])
    return Overhead(found)


class _Engine:
    """The engine, and what it says."""

    def __init__(self, load: protocol.Load, file: Path) -> None:
        self._reports: queue.SimpleQueue[protocol.Report | Lost] = queue.SimpleQueue()
        command = (sys.executable, "-m", "benchmarks.steps", str(file))
        self.process = EngineProcess(load, lambda _child, report: self._reports.put(report), command=command)

    def hear(self, deadline: float) -> protocol.Report:
        try:
            report = self._reports.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise BenchmarkError("the engine said nothing any more") from None
        if isinstance(report, Lost):
            raise BenchmarkError(f"the engine's process ended: {report.reason}")
        if isinstance(report, protocol.Failed):
            raise BenchmarkError(f"the engine cannot load the model: {report.message}")
        return report


@contextmanager
def _engine(setup: Setup, file: Path) -> Iterator[_Engine]:
    engine = _Engine(protocol.Load(**setup.load), file)
    engine.process.start()
    try:
        deadline = time.monotonic() + ONLINE_S
        while not isinstance(engine.hear(deadline), protocol.Ready):
            pass
        yield engine
    finally:
        engine.process.stop()


def _generate(engine: _Engine, setup: Setup, load: Load) -> None:
    """Order all streams at once; when all of them have had so many tokens together, end them.

    Those that decode first wait for the others' prompts, of which a step beside them may take a single token along.
    """
    running, together = set(range(load.streams)), dict.fromkeys(range(load.streams), 0)
    for stream in running:
        prompt = load.prompt(stream)
        order = protocol.Generate(
            uid=stream,
            max_tokens=setup.load["context"] // load.streams - len(prompt),
            seed=load.sampler_seed(stream),
            prompt=prompt,
            **setup.sampling,
        )
        engine.process.send(1, order)
    deadline, waiting_for = time.monotonic() + _PATIENCE_S, set(running)
    while running:
        report = engine.hear(deadline)
        if not isinstance(report, protocol.Step):
            continue
        for one in report.finished:
            running.discard(one.uid)
            if one.reason == "error":
                raise BenchmarkError(f"a request ended with {one.error}: {one.message}")
        for uid, _, tokens in report.deltas:
            waiting_for.discard(uid)
            together[uid] += 0 if waiting_for else len(tokens)
        if min(together.values()) >= load.tokens:
            for uid in running:
                engine.process.send(1, protocol.Cancel(uid))
