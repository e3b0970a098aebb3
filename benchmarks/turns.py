"""Sides that have the machine in turns, a fraction of a second each, and the clock of each that runs in its turns.

Machines that are shared with others change their speed by the second. Two measurements of seconds, one after the other,
then differ by more than what is to be measured. Here both sides work "at the same time": the processes of one run
while those of the other are stopped (SIGSTOP), and what slows one down slows down the other as well. For a side it is
as if time stood still in between: nothing that it has begun is lost.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from types import TracebackType
from typing import Self

#: How long one turn lasts, seconds: many steps of a model, and many turns in a measurement.
TURN_S = 0.4


@dataclass(slots=True)
class Clock:
    """A side's own time, which stands still while it is another side's turn.

    Attributes:
        turns: begin and end of each, seconds of the machine's monotonic clock; the last may have no end.
    """

    turns: list[tuple[float, float]] = field(default_factory=list)

    def at(self, moment: float) -> float:
        """Seconds of its own time from the first turn to a moment of the machine's monotonic clock."""
        return sum(min(moment, end) - begin for begin, end in self.turns if begin < moment)


class Turns:
    """Gives every side its turns as long as the `with` block goes on; after it all of them run.

    Args:
        sides: the processes of each side, by its name; the first one begins.
        turn_s: how long a turn lasts, seconds.

    Attributes:
        clocks: by side.
    """

    def __init__(self, sides: Mapping[str, Sequence[int]], turn_s: float = TURN_S) -> None:
        self.clocks = {name: Clock() for name in sides}
        self._sides = dict(sides)
        self._turn_s = turn_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="turns", daemon=True)

    def __enter__(self) -> Self:
        for name in list(self._sides)[1:]:
            self._signal(name, signal.SIGSTOP)
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        for name, clock in self.clocks.items():
            clock.turns.append((time.monotonic(), float("inf")))
            self._signal(name, signal.SIGCONT)

    def _run(self) -> None:
        for name in cycle(self._sides):
            begin = time.monotonic()
            self._signal(name, signal.SIGCONT)
            over = self._over.wait(self._turn_s)
            self._signal(name, signal.SIGSTOP)
            self.clocks[name].turns.append((begin, time.monotonic()))
            if over:
                return

    def _signal(self, name: str, number: signal.Signals) -> None:
        for pid in self._sides[name]:
            with suppress(ProcessLookupError):  # whoever waits for it will see that it has ended
                os.kill(pid, number)
