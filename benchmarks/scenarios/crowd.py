"""Sixteen streams beside eight: two nodes with one configuration, in turns.

Both have room for sixteen. One answers eight requests and the other sixteen, all of one length; counted is for each, by
its own clock, the time in which all of its streams generate, so the context is as deep on both sides.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, ClassVar

from benchmarks.beside import Pair
from benchmarks.children import consume
from benchmarks.consumer import Order
from benchmarks.figures import Middle, NeverTogetherError, long_enough, ratio
from benchmarks.load import Load
from benchmarks.node import NAME, ONLINE_S, Node, node
from benchmarks.outcome import Outcome, Table, Verdict, bars
from benchmarks.scene import Form, Scene

_FEW, _MANY = 8, 16
#: So many that the first stream has not ended when the prompt of the last one has been computed.
_TOKENS = 144
_PAIRS, _QUICK_PAIRS = 4, 1
#: Of a prompt: short ones, so that no stream has ended before the last one begins.
_NUMBERS = 3
#: Cells of the KV cache for each stream.
_CELLS = 256


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second of all streams together, by pair.

    Attributes:
        few, many: of the node with fewer streams, and of the one with more.
    """

    few: list[float]
    many: list[float]

    @property
    def ratio(self) -> Middle:
        """Many by few."""
        return ratio(self.many, self.few)


@dataclass(frozen=True, slots=True)
class Crowd(Outcome):
    """By the form of the file."""

    title: ClassVar[str] = f"{_MANY} streams beside {_FEW}"

    forms: dict[str, Rates]

    def tables(self) -> list[Table]:
        """A row for each form."""
        rows = [
            [
                name,
                str(len(rates.few)),
                f"{Middle.of(rates.few).median:.1f}",
                f"{Middle.of(rates.many).median:.1f}",
                str(rates.ratio),
            ]
            for name, rates in self.forms.items()
        ]
        head = ["file", "pairs", f"{_FEW} streams", f"{_MANY} streams", "ratio"]
        return [Table("Tokens/s of all streams together, medians; ratios, median (least to most)", head, rows)]

    def verdicts(self) -> list[Verdict]:
        """Of the ratios."""
        return [
            Verdict(f"{name}: tokens/s of {_MANY} streams by those of {_FEW}", rates.ratio.median, 1.0, least=True)
            for name, rates in self.forms.items()
        ]

    def draw(self, axes: Any) -> None:
        """The medians."""
        sides = [
            (f"{name}: {streams}", Middle.of(values).median)
            for name, rates in self.forms.items()
            for streams, values in ((_FEW, rates.few), (_MANY, rates.many))
        ]
        bars(axes, [name for name, _ in sides], [value for _, value in sides], unit="tokens/s")


def measure(scene: Scene) -> Crowd:
    """Measure both nodes in turns, for each form of the file.

    Raises:
        BenchmarkError: a request failed.
    """
    return Crowd({form.name: _measure(scene, form) for form in scene.forms()})


def _measure(scene: Scene, form: Form) -> Rates:
    few, many = list[float](), list[float]()
    seeds = count(1)
    with _both(scene, form) as nodes:
        for number in range(_QUICK_PAIRS if scene.quick else _PAIRS):
            rates = long_enough(partial(_pair, nodes, seeds, few_first=number % 2 == 0), NeverTogetherError)
            few.append(rates[0])
            many.append(rates[1])
            told = f"{_FEW} streams {few[-1]:.1f}, {_MANY} streams {many[-1]:.1f} tokens/s"
            print(f"{form.name}, pair {number + 1}: {told}", file=sys.stderr)
    return Rates(few, many)


@contextmanager
def _both(scene: Scene, form: Form) -> Iterator[tuple[Node, Node]]:
    context = max(form.settings.models[0].context, _CELLS * _MANY)
    settings = form.with_model(parallel=_MANY, context=context)
    with (
        node(settings, scene.place(f"crowd-{form.name}-few")) as few,
        node(settings, scene.place(f"crowd-{form.name}-many")) as many,
    ):
        for one in (few, many):
            consume(Order(one.port, NAME, Load(1, 4, 0), ONLINE_S))
        yield few, many


def _pair(nodes: tuple[Node, Node], seeds: Iterator[int], *, few_first: bool) -> tuple[float, float]:
    seed = next(seeds)
    loads = (Load(_FEW, _TOKENS, seed, numbers=_NUMBERS), Load(_MANY, _TOKENS, seed, numbers=_NUMBERS))
    pair = Pair.measure(nodes, loads, one_first=few_first)
    return pair.one.figures().tokens_per_s, pair.other.figures().tokens_per_s
