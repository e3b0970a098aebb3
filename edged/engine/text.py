"""From token bytes to text: whole characters only, and stop strings that may span tokens."""

from __future__ import annotations

import codecs


class TextStream:
    """The text of one answer as its tokens come.

    Holds back the bytes of an unfinished character and the text that may still turn out to be the beginning of a stop
    string; everything else is given out at once. Small models now and then say bytes that are no character (half an
    emoji, say). They are passed over: a replacement character would look like a chunk that was cut wrong.

    Of stop strings that overlap in the text, the one that is complete first counts, and of those that end with the
    same character the longest: so it makes no difference how the text was cut into tokens.

    Attributes:
        stopped: a stop string was found; it and what follows are not part of the answer.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """The text that `piece` makes certain; possibly empty. Bytes that are no UTF-8 are passed over."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(piece)
        if not self._stops:
            return text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            _, start = min(found)
            return text[:start]
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back for a stop string that did not come. An unfinished character is dropped."""
        text, self._held = self._held, ""
        return text

    def _possible_start(self, text: str) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        for keep in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-keep:]
            if any(stop.startswith(tail) for stop in self._stops):
                return keep
        return 0
