"""One direction of a network connection: things arrive late, in order within a lane, and not at all once it is cut."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.simulation.clock import Agenda, Clock


class Wire:
    """Carries calls.

    Args:
        delay_s: the mean of how long one takes; what leaves on different lanes may overtake each other.
    """

    def __init__(self, agenda: Agenda, clock: Clock, rng: random.Random, delay_s: float) -> None:
        self._agenda = agenda
        self._clock = clock
        self._rng = rng
        self._delay_s = delay_s
        self._last: dict[str, float] = {}
        self._cut = False

    def send(self, lane: str, call: Callable[[], None]) -> None:
        """Have something happen at the other end."""
        at = max(self._last.get(lane, 0.0), self._clock.time + self._rng.random() * 2 * self._delay_s)
        self._last[lane] = at
        self._agenda.at(at, lambda: None if self._cut else call())

    def cut(self) -> None:
        """What is under way never arrives."""
        self._cut = True
