"""What steps cost on this machine, by which the next step is planned, and a hang is told from work."""

from __future__ import annotations

from collections import deque
from statistics import median

#: A decode step costs the median of so many of the last ones: a hiccup spoils nothing.
_STEPS = 5
#: Weight of the newest step in the running average of prefill.
_NEWEST = 0.2
#: A step's prefill counts as so many times dearer or cheaper than expected at most.
_MOST = 4.0
#: Fewer tokens say little of what one costs, where decoding takes most of the step: it has a price of its own.
_TELLING = 16
#: After so many steps of both, decoding is measured by itself again: it gets dearer the more cells are in use, and that
#: must not be charged to a prompt, which would be given fewer and fewer tokens for it.
_BLURRED = 12


class Costs:
    """A step costs what decoding costs for so many sequences, and a price for each token of prefill.

    Attributes:
        prefill_s: one token of prefill, seconds; 0 = not known yet.
    """

    def __init__(self) -> None:
        self.prefill_s = 0.0
        self._decode_s: dict[int, deque[float]] = {}
        self._mixed = 0

    @property
    def is_blurred(self) -> bool:
        """Whether it is time for a step without prefill, to see what decoding costs now."""
        return self._mixed >= _BLURRED

    def decode_s(self, sequences: int) -> float:
        """A step in which so many sequences decode and nothing else happens, seconds; 0 = not known yet."""
        if not self._decode_s or not sequences:
            return 0.0
        nearest = min(self._decode_s, key=lambda n: abs(n - sequences))
        return median(self._decode_s[nearest]) * max(1.0, sequences / nearest)

    def expected_s(self, *, decoding: int, prefill: int) -> float | None:
        """What such a step should take, seconds; None where too little is known."""
        if (decoding and not self._decode_s) or (prefill and not self.prefill_s):
            return None
        return self.decode_s(decoding) + self.prefill_s * prefill

    def learn(self, *, decoding: int, prefill: int, seconds: float) -> None:
        """Note what a step with so many decoding sequences and so many prefill tokens took."""
        self._mixed = self._mixed + 1 if decoding and prefill else 0
        decode_s = self.decode_s(decoding)
        if decoding and (not prefill or seconds < decode_s):
            self._decode_s.setdefault(decoding, deque(maxlen=_STEPS)).append(seconds)
        if not prefill:
            return
        if decoding and not decode_s:  # nothing is known: all tokens alike
            decode_s = seconds * decoding / (decoding + prefill)
        new = max(0.0, seconds - decode_s) / (prefill if decoding else max(prefill, _TELLING))
        if not self.prefill_s:
            self.prefill_s = new
            return
        # Few tokens are telling where they should make the step much longer: by how much can be seen then.
        telling = max(prefill / _TELLING, prefill * self.prefill_s / decode_s if decode_s else 0.0)
        new = min(self.prefill_s * _MOST, max(self.prefill_s / _MOST, new))
        self.prefill_s += _NEWEST * min(1.0, telling) * (new - self.prefill_s)
