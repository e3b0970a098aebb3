"""Two nodes that generate at the same time, and have the machine in turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from benchmarks.children import consumer
from benchmarks.consumer import Order
from benchmarks.figures import Figures, Reply, Window, of_node, replies
from benchmarks.load import Load
from benchmarks.node import NAME, Node
from benchmarks.turns import Clock, Turns

_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Side:
    """What one of them answered.

    Attributes:
        answers: by the machine's monotonic clock.
        clock: the side's own.
    """

    answers: list[Reply]
    clock: Clock

    def figures(self, window: Window | None = None) -> Figures:
        """By its own clock, in a window of the machine's or as long as all of its streams generated.

        Raises:
            NeverTogetherError: at no time did all of them generate.
        """
        at = self.clock.at
        own = (at(window[0]), at(window[1])) if window else None
        return of_node([reply.by(at) for reply in self.answers], own)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two nodes, and the answers of each to its own load."""

    one: Side
    other: Side

    @classmethod
    def measure(cls, nodes: tuple[Node, Node], loads: tuple[Load, Load], *, one_first: bool) -> Self:
        """Have both generate, in turns.

        Args:
            nodes: the one and the other.
            loads: what is asked of each.
            one_first: whose turn is the first.

        Raises:
            EndedEarlyError: the model ended an answer.
            BenchmarkError: a request failed.
        """
        sides = {str(node.port): node.own for node in (nodes if one_first else reversed(nodes))}
        orders = [Order(node.port, NAME, load, _PATIENCE_S) for node, load in zip(nodes, loads, strict=True)]
        with consumer(orders[0]) as first, consumer(orders[1]) as second, Turns(sides) as turns:
            first.start()
            second.start()
            records = [first.record(), second.record()]
        return cls(
            *(
                Side(replies(record.sent, record.messages), turns.clocks[str(node.port)])
                for record, node in zip(records, nodes, strict=True)
            )
        )
