"""The models' engines as the core knows them: who is loaded, who has a free place, what runs where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from edged.core.stream import Stream
from edged.wire.messages import ModelCard


@dataclass(slots=True)
class Engine:
    """One model's engine.

    Attributes:
        card: what it is, once it is loaded.
        fraction: how much of it is loaded, 0 to 1.
        running: the streams it was given, by uid.
    """

    card: ModelCard | None = None
    fraction: float = 0.0
    running: dict[int, Stream] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """Places for more requests."""
        return self.card.parallel - len(self.running) if self.card else 0


class Fleet:
    """All engines."""

    def __init__(self, models: Iterable[str]) -> None:
        self._engines = {alias: Engine() for alias in models}

    def __getitem__(self, model: str) -> Engine:
        return self._engines[model]

    def items(self) -> Iterable[tuple[str, Engine]]:
        """Aliases and engines, in the order of the configuration."""
        return self._engines.items()

    @property
    def running(self) -> list[Stream]:
        """Every stream that an engine has."""
        return [stream for engine in self._engines.values() for stream in engine.running.values()]

    @property
    def running_per_client(self) -> Counter[str | None]:
        """How many streams of each client are running."""
        return Counter(stream.key.client for stream in self.running)

    @property
    def cards(self) -> list[ModelCard]:
        """The models that are loaded."""
        return [engine.card for engine in self._engines.values() if engine.card is not None]

    @property
    def has_room(self) -> bool:
        """Whether any engine has a free place."""
        return any(engine.free > 0 for engine in self._engines.values())

    @property
    def places(self) -> int:
        """How many requests can run at the same time, at least 1."""
        return sum(card.parallel for card in self.cards) or 1

    def clear(self) -> None:
        """Give up everything that runs."""
        for engine in self._engines.values():
            engine.running.clear()
