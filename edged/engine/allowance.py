"""How much of the KV cache may hold what nobody uses at the moment.

Cached cells are not free: every step passes over all of them (some 0.1 µs for each and every sequence that decodes).
Where nothing is ever asked twice that would be for nothing; where conversations go on, they save whole prefills. So the
allowance follows what happens: it grows when something is asked for that had to go, and shrinks while nothing is found.
"""

from __future__ import annotations

from collections import deque

#: The allowance is halved down to so many cells, which cost a step 1 or 2 % of its time with a very small model, and a
#: short prompt 6 %: llama.cpp's attention works in tiles of 64 cells, and begins it in the middle of one.
_LEAST = 256
#: After so many requests in a row that found nothing, it is halved; and after so many at the least, it is nothing.
_PATIENCE, _LAST_PATIENCE = 16, 64
#: So much of what had to go is remembered: beginnings, and tokens of each. Fewer in common say nothing.
_GONE, _TOKENS, _TELLING = 32, 256, 32


class Allowance:
    """A number of cells.

    Args:
        cells: of the whole cache.
    """

    def __init__(self, cells: int) -> None:
        self._least = min(cells, _LEAST)
        self._most = cells
        self._gone: deque[tuple[str | None, list[int]]] = deque(maxlen=_GONE)
        self._in_vain = 0
        self.cells = self._least

    def dropped(self, owner: str | None, tokens: list[int]) -> None:
        """A beginning that was kept for an owner (None = everybody) had to go."""
        self._gone.append((owner, tokens[:_TOKENS]))

    def asked(self, owner: str | None, tokens: list[int], found: int) -> None:
        """A request came and found so many of its tokens."""
        missed = max((alike(kept, tokens) for who, kept in self._gone if who in (None, owner)), default=0)
        if missed > found and missed >= _TELLING:
            self.cells = min(self._most, max(self._least, 2 * self.cells))
        elif not found:
            self._in_vain += 1
            if self.cells > self._least and self._in_vain >= _PATIENCE:
                self.cells = max(self._least, self.cells // 2)
            elif self._in_vain >= _LAST_PATIENCE:
                self.cells = 0
            else:
                return
        self._in_vain = 0


def alike(one: list[int], other: list[int]) -> int:
    """How long a beginning both share. By halves, because comparing whole slices costs next to nothing."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high - 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
