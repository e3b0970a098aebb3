"""The search: one setting after the other, each in a few rounds, and only a clear gain counts. Pure.

Not every combination is tried. A step offers variants of the best so far; they and the best so far are measured by
turns, so that what else the machine does meets all of them, and the best figure of each counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

#: So much faster a change must be to be worth it; less is noise. A fraction.
GAIN = 0.03
#: What is slower than this fraction of the best in its step is not measured again.
HOPELESS = 0.75


class TrialFailed(Exception):  # noqa: N818 - the noun says it
    """A trial came to nothing; the message is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Point:
    """Settings that can be tried.

    Attributes:
        file: the GGUF file.
        kind: its type, e.g. `Q4_0`.
        size: of the file, bytes.
    """

    threads: int
    ubatch: int
    flash_attention: str
    file: Path
    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class Speed:
    """What a trial found.

    Attributes:
        prefill: tokens per second of a prompt.
        decode_one: tokens per second of one sequence.
        decode_many: tokens per second of `streams` sequences together.
        memory: the most that the process held, bytes.
    """

    prefill: float
    decode_one: float
    decode_many: float
    streams: int
    memory: int

    @property
    def score(self) -> float:
        """The geometric mean of the three speeds, tokens per second: a gain counts the same in each."""
        return math.prod((self.prefill, self.decode_one, self.decode_many)) ** (1 / 3)

    def best(self, other: Speed | None) -> Speed:
        """The better of each figure, because what disturbs a measurement only makes it slower; the larger memory."""
        if other is None:
            return self
        return replace(
            self,
            prefill=max(self.prefill, other.prefill),
            decode_one=max(self.decode_one, other.decode_one),
            decode_many=max(self.decode_many, other.decode_many),
            memory=max(self.memory, other.memory),
        )


@dataclass(slots=True)
class Row:
    """A candidate and how it fared.

    Attributes:
        what: the change, in words.
        failure: why there is no figure.
        barred: why it cannot be chosen although it can be measured.
    """

    what: str
    point: Point
    speed: Speed | None = None
    failure: str = ""
    barred: str = ""

    @property
    def score(self) -> float:
        """Tokens per second; 0 where there is no figure, or it cannot be chosen."""
        return 0.0 if self.speed is None or self.failure or self.barred else self.speed.score


#: Variants of the best so far.
Step = Callable[[Point], list[Row]]


class Search:
    """Finds the fastest settings.

    Args:
        measure: tries a row's settings once; raises `TrialFailed`.
        rounds: how often each candidate is measured, at most.

    Attributes:
        rows: all that was tried, the current settings first.
    """

    def __init__(self, measure: Callable[[Row], Speed], *, rounds: int) -> None:
        self._measure = measure
        self._rounds = rounds
        self.rows: list[Row] = []

    def run(self, current: Point, steps: Sequence[Step]) -> Row:
        """Try all steps; returns the row to use, which is the current one where nothing is clearly faster."""
        first = best = Row("current", current)
        self.rows.append(first)
        self._compare([first], rounds=1)  # it also brings the file into memory, so that nobody pays for that
        for step in steps:
            candidates = step(best.point)
            self.rows += candidates
            if not any(not row.failure for row in candidates):
                continue
            self._compare([best, *candidates], rounds=self._rounds)
            fastest = max(candidates, key=lambda row: row.score)
            if _beats(fastest, best):
                best = fastest
        return best if _beats(best, first) else first

    def _compare(self, rows: Iterable[Row], *, rounds: int) -> None:
        running = [row for row in rows if not row.failure]
        for _ in range(rounds):
            for row in running:
                try:
                    row.speed = self._measure(row).best(row.speed)
                except TrialFailed as error:
                    row.failure = str(error)
            fastest = max((row.speed.score for row in running if row.speed and not row.failure), default=0.0)
            running = [r for r in running if not r.failure and r.speed and r.speed.score >= HOPELESS * fastest]


def _beats(row: Row, other: Row) -> bool:
    return row.score > other.score * (1 + GAIN)


def thread_counts(cores: int) -> list[int]:
    """The numbers of threads to try: one, half of the physical cores, all but one, and all."""
    return sorted({n for n in (1, cores // 2, cores - 1, cores) if n >= 1})


def threads(counts: Iterable[int]) -> Step:
    """A step that tries numbers of threads."""
    return lambda best: [Row(f"threads {n}", replace(best, threads=n)) for n in counts if n != best.threads]


def flash_attention(values: Iterable[str]) -> Step:
    """A step that tries kernels of the attention: `on`, `off`."""
    return lambda best: [
        Row(f"flash {v}", replace(best, flash_attention=v)) for v in values if v != best.flash_attention
    ]


def ubatch(sizes: Iterable[int]) -> Step:
    """A step that tries sizes of the physical batch, tokens."""
    return lambda best: [Row(f"ubatch {n}", replace(best, ubatch=n)) for n in sizes if n != best.ubatch]
