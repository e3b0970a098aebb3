"""Soak: many short requests, eight in flight at any time. All end right, and memory stays where it was."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks.client import Client, Exchange, client
from benchmarks.load import Load
from benchmarks.machine import resident
from benchmarks.node import Node, node
from benchmarks.outcome import Outcome, Table, Verdict, bars
from benchmarks.scene import Scene

_REQUESTS, _QUICK_REQUESTS = 2000, 200
_IN_FLIGHT, _TOKENS, _NUMBERS = 8, 8, 2
_MIB = 2**20
#: Memory is flat where it grows by no more than this, as a factor: what an allocator keeps varies.
_GROWTH = 1.05


@dataclass(frozen=True, slots=True)
class Soak(Outcome):
    """Bytes resident, by process, and how the requests ended.

    Attributes:
        settled: how many requests had ended when `early` was taken.
        wrong: why requests did not end right.
        seconds: from the first request to the last final.
    """

    title: ClassVar[str] = f"Soak: short requests, {_IN_FLIGHT} in flight"

    requests: int
    settled: int
    wrong: list[str]
    seconds: float
    early: dict[str, int]
    late: dict[str, int]

    def tables(self) -> list[Table]:
        """How they ended, and memory."""
        return [
            Table(
                f"{_TOKENS} tokens each; resident memory, MiB",
                [
                    *("requests", "ended right", "requests/s"),
                    *(f"{name} after {n}" for name in self.early for n in (self.settled, self.requests)),
                ],
                [
                    [
                        *(str(self.requests), str(self.requests - len(self.wrong))),
                        f"{self.requests / self.seconds:.1f}",
                        *(f"{size[name] / _MIB:.1f}" for name in self.early for size in (self.early, self.late)),
                    ]
                ],
            ),
            *([Table("What went wrong", ["first of them"], [[self.wrong[0]]])] if self.wrong else []),
        ]

    def verdicts(self) -> list[Verdict]:
        """Of the ends, and of the growth of memory after the first tenth."""
        return [
            Verdict(f"of {self.requests} requests, those that did not end right", len(self.wrong), 0),
            *(
                Verdict(f"{name}: memory after {self.requests} by memory after {self.settled}", late / early, _GROWTH)
                for (name, early), late in zip(self.early.items(), self.late.values(), strict=True)
            ),
        ]

    def draw(self, axes: Any) -> None:
        """Memory, early and late."""
        names = [f"{name} after {n}" for name in self.early for n in (self.settled, self.requests)]
        sizes = [size[name] / _MIB for name in self.early for size in (self.early, self.late)]
        bars(axes, names, sizes, unit="MiB resident")


def measure(scene: Scene) -> Soak:
    """Keep eight requests in flight until all have been sent and answered.

    Raises:
        BenchmarkError: one was not answered.
    """
    total = _QUICK_REQUESTS if scene.quick else _REQUESTS
    settled = total // 10
    with node(scene.settings, scene.place("soak")) as served, client(served) as me:
        run = _Run(me, total)
        started = time.monotonic()
        run.until(settled)
        early = _resident(served)
        run.until(total)
        seconds = time.monotonic() - started
        late = _resident(served)
    return Soak(total, settled, run.wrong, seconds, early, late)


class _Run:
    def __init__(self, me: Client, total: int) -> None:
        self._me = me
        self._total = total
        self._sent = 0
        self._ended = 0
        self._flying: list[Exchange] = []
        self.wrong: list[str] = []

    def until(self, ended: int) -> None:
        """Go on until so many have ended."""
        while self._ended < ended:
            while self._sent < self._total and len(self._flying) < _IN_FLIGHT:
                self._flying.append(self._me.ask(Load(1, 1, self._sent, numbers=_NUMBERS).prompt(0), _TOKENS))
                self._sent += 1
            self._me.until(lambda: any(one.final for one in self._flying), "an answer")
            done = [one for one in self._flying if one.final]
            self._flying = [one for one in self._flying if not one.final]
            self._ended += len(done)
            self.wrong += [one.failure for one in done if one.failure]


def _resident(served: Node) -> dict[str, int]:
    pids = served.pids
    return {name: resident(pids[name]) for name in ("daemon", "engine")}
