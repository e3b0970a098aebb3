"""What the journal costs: eight streams with it in a file and in memory, in turns; and its writes by themselves.

Two daemons with a broker each generate at the same time, and have the machine in turns (see `turns.Turns`). In memory
the same rows are kept in the same tables, but nothing is written and nothing synced. What the rows themselves cost is
measured beside it: as many bursts as eight streams make in a second, into a file, in this process.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.beside import Pair
from benchmarks.children import consume
from benchmarks.consumer import Order
from benchmarks.figures import NeverTogetherError, in_both, long_enough, together
from benchmarks.load import Load
from benchmarks.node import NAME, ONLINE_S, Node, node
from benchmarks.outcome import Outcome, Table, Verdict, bars
from benchmarks.scene import Scene
from edged.core.events import Now
from edged.core.records import Key, NewRequest, Said
from edged.journal import Journal

_STREAMS, _TOKENS, _QUICK_TOKENS = 8, 120, 40
_PAIRS, _QUICK_PAIRS = 6, 2
#: Of a prompt: short ones, so that no stream has ended before the last one begins.
_NUMBERS = 3
_BURSTS = 1000
_LOSS = 0.02


@dataclass(frozen=True, slots=True)
class Cost(Outcome):
    """With the journal and without.

    Attributes:
        on, off: tokens per second of all streams together, by repeat.
        write_us: of one burst of chunks, all streams together, microseconds.
        bursts_per_s: as many as they make.
    """

    title: ClassVar[str] = f"The journal: what {_STREAMS} streams pay for it"

    on: list[float]
    off: list[float]
    write_us: float
    bursts_per_s: float

    @property
    def loss(self) -> float:
        """Part of the throughput without it: the median over the pairs."""
        return 1 - statistics.median(a / b for a, b in zip(self.on, self.off, strict=True))

    @property
    def part(self) -> float:
        """Part of one core that writing takes."""
        return self.write_us * self.bursts_per_s / 1e6

    def tables(self) -> list[Table]:
        """Both sides, and the writes."""
        ratios = [a / b for a, b in zip(self.on, self.off, strict=True)]
        return [
            Table(
                "Tokens per second, medians",
                ["pairs", "in a file", "in memory", "ratio", "least", "most"],
                [
                    [
                        str(len(ratios)),
                        *(f"{statistics.median(side):.1f}" for side in (self.on, self.off)),
                        *(f"{value:.3f}" for value in (1 - self.loss, min(ratios), max(ratios))),
                    ]
                ],
            ),
            Table(
                f"Writing {_STREAMS} chunks at once",
                ["microseconds", "times a second", "part of one core"],
                [[f"{self.write_us:.0f}", f"{self.bursts_per_s:.0f}", f"{self.part:.3%}"]],
            ),
        ]

    def verdicts(self) -> list[Verdict]:
        """Of both."""
        return [
            Verdict("throughput that the journal costs", self.loss, _LOSS),
            Verdict("part of a core that writing takes", self.part, _LOSS),
        ]

    def draw(self, axes: Any) -> None:
        """Both sides."""
        bars(
            axes, ["in a file", "in memory"], [statistics.median(self.on), statistics.median(self.off)], unit="tokens/s"
        )


def measure(scene: Scene) -> Cost:
    """Measure both daemons in turns, and the writes by themselves.

    Raises:
        BenchmarkError: a request failed.
    """
    on: list[float] = []
    off: list[float] = []
    seeds = count(1000)
    load = Load(_STREAMS, _QUICK_TOKENS if scene.quick else _TOKENS, 1, numbers=_NUMBERS)
    with _both(scene) as nodes:
        for number in range(_QUICK_PAIRS if scene.quick else _PAIRS):
            pair = partial(_rates, nodes, load, seeds, file_first=number % 2 == 0)
            rates = long_enough(pair, NeverTogetherError)
            on.append(rates[0])
            off.append(rates[1])
            print(f"pair {number + 1}: in a file {on[-1]:.1f}, in memory {off[-1]:.1f} tokens/s", file=sys.stderr)
    bursts = 1000 / max(1.0, scene.settings.stream.flush_ms)
    return Cost(on, off, _write_us(scene.place("journal-writes") / "journal.db"), bursts)


@contextmanager
def _both(scene: Scene) -> Iterator[tuple[Node, Node]]:
    with (
        node(scene.settings, scene.place("journal-on"), EDGED_JOURNAL__ENABLED="true") as on,
        node(scene.settings, scene.place("journal-off"), EDGED_JOURNAL__ENABLED="false") as off,
    ):
        for one in (on, off):
            consume(Order(one.port, NAME, Load(1, 4, 0), ONLINE_S))
        yield on, off


def _rates(nodes: tuple[Node, Node], load: Load, seeds: Iterator[int], *, file_first: bool) -> tuple[float, float]:
    """Tokens per second of both, while all streams of both generate; the first one has its journal in a file."""
    load = replace(load, seed=next(seeds))
    pair = Pair.measure(nodes, (load, load), one_first=file_first)
    window = in_both(pair.one.answers, together(pair.other.answers))
    return pair.one.figures(window).tokens_per_s, pair.other.figures(window).tokens_per_s


def _write_us(file: Path) -> float:
    """The median of writing a chunk of each stream, microseconds; as the daemon does it, with checkpoints and all."""
    now = Now(time.monotonic(), time.time())
    journal = Journal.open(file, keep_s=600, max_bytes=2**26, boot_id="bench", wall=now.wall, post=lambda _synced: None)
    try:
        topic, payload = "edged/v1/bench/reply/k", b'{"id":"k","gen":1,"seq":100,"ts":1795226000.123,"type":"chunk"}'
        new = [
            NewRequest(uid, Key(None, f"k{uid}"), b"d" * 32, topic, b"x" * 200, None, None, uid, 1, topic, now, now)
            for uid in range(1, _STREAMS + 1)
        ]
        journal.write(new)
        took = []
        for seq in range(_BURSTS):
            rows = [Said(uid, 1, seq, payload + b" " * 40, " some words", (1, 2, 3), seq) for uid in range(1, 9)]
            started = time.perf_counter()
            journal.write(rows)
            took.append(time.perf_counter() - started)
    finally:
        journal.close(clean=True)
    return statistics.median(took) * 1e6
