"""Who may come into the KV cache, and who has to leave it for that.

A sequence is admitted where there is room for its tokens beside those that run, all of them with a small reserve, not
with all that they may generate. One that finds no room waits, and those behind it may pass it.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Listed

from edged.engine.prefix import PrefixCache
from edged.engine.sequence import Sequence

#: Cells that are left free for each running sequence to grow into.
_RESERVE = 32
#: A sequence is short up to the cells by this. Beside others, one that is not leaves as many cells for short ones.
_SHORT = 8


class Admission:
    """Judges; the scheduler acts.

    Args:
        cache: what was computed for ended sequences.
        cells: size of the KV cache, tokens.
        running: the scheduler's, oldest first, as they are at any time.
        slots: the scheduler's that are free at any time.
    """

    def __init__(self, cache: PrefixCache, cells: int, *, running: Listed[Sequence], slots: Listed[int]) -> None:
        self._cache = cache
        self._cells = cells
        self._running = running
        self._slots = slots

    def is_short(self, sequence: Sequence) -> bool:
        """Whether it may pass others on the terms of `may_pass`, and needs not leave anything for short ones."""
        return len(sequence.tokens) <= self._cells // _SHORT

    def leave_for(self, sequence: Sequence) -> list[Sequence] | None:
        """Who has to go so that one that waits can run: nobody where there is room. None where it cannot."""
        gone = self._may_leave_for(sequence)
        if not self._fits(sequence, gone):
            return None
        for one in reversed(gone):
            if self._fits(sequence, others := [s for s in gone if s is not one]):
                gone = others
        return gone

    def may_pass(self, sequence: Sequence, first: Sequence) -> bool:
        """Whether a sequence may run before one that came first and waits for room.

        Whoever is short may where there is room, for it yields to the first as soon as that is enough. Others never do.
        The first will find room at the latest when enough of them have generated all they may. Whoever is done by then
        may pass, and whoever needs no more than what is left over then. A token of its own prompt counts as a step.
        """
        if not self._slots or self._shortage(sequence) > 0:
            return False
        if self.is_short(sequence):
            return True
        gone, steps = self._may_leave_for(first), 0
        stay = sorted((s for s in self._running if s not in gone), key=lambda one: one.left)
        while stay and self._shortage(first, gone) > 0:
            gone.append(stay.pop(0))
            steps = gone[-1].left
        over = -self._shortage(first, gone) - _RESERVE - sum(one.left for one in (first, *stay))
        return sequence.pending + sequence.left <= max(steps, over)

    def _may_leave_for(self, sequence: Sequence) -> list[Sequence]:
        """Those that run and would give up their places for one that waits, those first that should go first.

        They are those that are held, and the short ones that have passed it; the youngest first.
        """
        held = [s for s in self._running if s.is_held]
        return [*reversed(held), *(s for s in reversed(self._have_passed(sequence)) if not s.is_held)]

    def _have_passed(self, sequence: Sequence) -> list[Sequence]:
        return [s for s in self._running if s.yields and s.number > sequence.number]

    def _fits(self, sequence: Sequence, gone: Collection[Sequence]) -> bool:
        """Whether one that waits has room where these have gone."""
        is_alone = len(gone) == len(self._running)
        return bool(self._slots or gone) and (is_alone or self._shortage(sequence, gone) <= 0)

    def _shortage(self, sequence: Sequence, gone: Collection[Sequence] = ()) -> int:
        """Cells that are missing for one that waits beside those that run, all of them with a reserve.

        One that is not short leaves some for short ones; what those have that passed it is part of that.

        Args:
            sequence: the one that waits.
            gone: of those that run, whoever will not any more when it comes.
        """
        taken = self._taken(sequence, gone)
        slots = len(self._slots) + len({*gone, *self._may_leave_for(sequence)})
        if not self.is_short(sequence) and slots > 1:
            without = {*gone, *self._have_passed(sequence)}
            taken = max(taken, self._taken(sequence, without) + self._cells // _SHORT)
        return taken - self._cells

    def _taken(self, sequence: Sequence, gone: Collection[Sequence]) -> int:
        """Cells that are in use when a sequence comes and those others are gone, each with a reserve."""
        nodes = [s.node for s in gone if s.node]
        found, locked = self._cache.peek(sequence.tokens, sequence.owner, nodes)
        running = sum(_grown(s) - s.kept for s in self._running if s not in gone)
        return locked + running + len(sequence.tokens) - found + _RESERVE


def _grown(sequence: Sequence) -> int:
    """Cells of a running sequence, with a reserve."""
    return max(sequence.computed, len(sequence.tokens)) + _RESERVE
