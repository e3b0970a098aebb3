"""What is said at every attempt to load a model is news at the first."""

from __future__ import annotations

from collections import defaultdict


class Repeats:
    """Knows what was said of each model at the attempt before this one."""

    def __init__(self) -> None:
        self._before: dict[str, set[str]] = {}
        self._now: defaultdict[str, set[str]] = defaultdict(set)
        self._ready: set[str] = set()

    def is_news(self, model: str, text: str) -> bool:
        """Whether this is worth a line. What is said of a model that is loaded always is."""
        if model in self._ready:
            return True
        self._now[model].add(text)
        return text not in self._before.get(model, ())

    def ready(self, model: str) -> None:
        """It is loaded."""
        self._ready.add(model)
        self._before.pop(model, None)
        self._now.pop(model, None)

    def lost(self, model: str) -> None:
        """The attempt was in vain, or its engine is gone: there will be another one."""
        self._ready.discard(model)
        self._before[model] = self._now.pop(model, set())
