"""What the child has to report and has not sent yet."""

from __future__ import annotations

import time

from edged.engine.protocol import Finished, Step


class Unsent:
    """What the daemon has not heard yet. Text waits for more text, so that the daemon need not wake for every token.

    Args:
        hold_s: for how long at most; an answer's first text, its end and progress do not wait. Seconds.
    """

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._texts: dict[int, tuple[list[str], list[int]]] = {}
        self._step = Step()
        self._since: float | None = None
        self._urgent = False

    def say(self, uid: int, text: str, tokens: list[int], *, first: bool) -> None:
        """Give out text and the tokens behind it."""
        texts, all_tokens = self._texts.setdefault(uid, ([], []))
        texts.append(text)
        all_tokens += tokens
        self._urgent = self._urgent or first
        if self._since is None:
            self._since = time.monotonic()

    def progress(self, uid: int, done: int, total: int) -> None:
        """Tell how much of a prompt is computed, tokens."""
        self._step.prefill.append((uid, done, total))
        self._urgent = True

    def end(self, finished: Finished) -> None:
        """Tell of the end of a request."""
        self._step.finished.append(finished)
        self._urgent = True

    def due(self, now: float, step_s: float) -> bool:
        """Whether it has to leave now, where another step takes so long; 0 = there will be none, seconds."""
        if self._urgent or self._since is None:
            return self._urgent
        return not step_s or now + step_s > self._since + self._hold_s

    def take(self, now: float) -> Step:
        """All of it, to be sent."""
        step, self._step = self._step, Step()
        step.deltas = [(uid, "".join(texts), tokens) for uid, (texts, tokens) in self._texts.items()]
        step.held_s = now - self._since if self._since is not None else 0.0
        self._texts, self._since, self._urgent = {}, None, False
        return step
