"""Keeps what one sequence has in the KV cache together, while several generate.

Each step gives every sequence one cell, and llama.cpp takes the first that are free: a sequence's cells come to lie
between those of the others. Its attention reads them one sequence after the other, and what lies apart is read more
slowly than what lies together. So cells are moved: a run of the sequence that has most of them apart goes to where
cells are free together, and the steps that follow fill what it has left. That is why a run moves only when as many
tokens have come since the last one: the cells that are free first are those behind all others then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Listed
from typing import Protocol

from edged.engine.sequence import Sequence

#: Tokens that are moved at once. By 16, 8 streams gained less (docs/performance.md); by 64, more lie apart at any time.
RUN = 32
#: Most of the time that moving may take; of so many seconds, what was not taken is left for later.
_SHARE, _SAVED_S = 0.02, 1.0


class Cells(Protocol):
    """The cells of the KV cache."""

    def move(self, sequence: int, start: int, end: int) -> bool:
        """Put what is in a sequence's cells of positions `start` to `end` (exclusive) into others; False = not done."""


class Residents(Protocol):
    """The sequences that have cells."""

    @property
    def decoding(self) -> Listed[Sequence]:
        """Those that wait for nothing but their next token."""

    def has_free(self, cells: int) -> bool:
        """Whether so many cells are free."""

    def moved(self, sequence: Sequence, count: int) -> None:
        """Note that so many of a sequence's scattered tokens, the first ones, were moved."""


class Defragmenter:
    """Moves cells between steps.

    Args:
        cells: the KV cache.
        residents: whose they are.
        clock: monotonic seconds.
    """

    def __init__(self, cells: Cells, residents: Residents, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cells = cells
        self._residents = residents
        self._clock = clock
        self._came = 0
        self._not_before = clock()

    def note(self, tokens: int) -> None:
        """So many tokens were computed: as many cells that were free are not any more."""
        self._came += tokens

    def tend(self) -> None:
        """Move what should be moved now."""
        while self._came >= RUN and (sequence := self._next()) is not None:
            if (started := self._clock()) < self._not_before:
                break
            first = sequence.scattered.start
            if not self._cells.move(sequence.slot, first, first + RUN):
                break
            self._residents.moved(sequence, RUN)
            self._came -= RUN
            self._not_before = max(self._not_before, started - _SAVED_S) + (self._clock() - started) / _SHARE
        self._came = min(self._came, RUN)

    def _next(self) -> Sequence | None:
        """Whose cells are to be moved; None where that is not worth it, or there is no room."""
        decoding = self._residents.decoding
        if len(decoding) < 2:  # one alone has nobody's cells between its own
            return None
        most = max(decoding, key=lambda one: len(one.scattered))
        return most if len(most.scattered) >= RUN and self._residents.has_free(RUN) else None
