"""The models' engines as the core knows them: who is loaded, who has a free place, what runs where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from edged.core.events import EngineLost, Now
from edged.core.stream import Ending, State, Stream
from edged.core.survivors import Survivors, alone
from edged.wire.errors import ErrorCode
from edged.wire.messages import Error, ModelCard

#: What is recommended to those who come while a model cannot be loaded, at least: it takes time to load. Seconds.
_LEAST_RETRY_S = 1.0
#: So long who was accepted waits for a model that could be loaded before and cannot now: what it lacks is mostly
#: memory, which whoever took it gives back. Seconds, in which loading it is tried some times.
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a model cannot be loaded.

    Attributes:
        again_at: when it is tried again, monotonic seconds.
    """

    code: ErrorCode
    message: str
    again_at: float

    @classmethod
    def of(cls, event: EngineLost, now: Now) -> Failure | None:
        """What an engine died of while it loaded; None where it did not say, or had loaded."""
        if event.error is None:
            return None
        message = f"the model {event.model!r} cannot be loaded: {event.reason}"
        return cls(event.error, message, now.mono + event.retry_in_s)

    def error(self, now: Now) -> Error:
        """The same for a final."""
        wait_s = max(_LEAST_RETRY_S, self.again_at - now.mono)
        return Error.of(self.code, self.message, retry_after_ms=round(wait_s * 1000))


@dataclass(slots=True)
class Engine:
    """One model's engine.

    Attributes:
        card: what it is, once it is loaded.
        fraction: how much of it is loaded, 0 to 1.
        running: the streams it was given, by uid.
        survivors: the streams that outlived its predecessor, and wait to go on.
        failure: it cannot be loaded, as things stand; nobody new is accepted.
        patient_until: so long who was accepted waits nevertheless, monotonic seconds.
    """

    card: ModelCard | None = None
    fraction: float = 0.0
    running: dict[int, Stream] = field(default_factory=dict)
    survivors: Survivors = field(default_factory=Survivors)
    failure: Failure | None = None
    patient_until: float = float("-inf")
    _reason: str | None = None

    @property
    def free(self) -> int:
        """Places for new requests; none before all survivors that could go on have theirs, nor beside a suspect."""
        if self.card is None or self.survivors.ready or alone(self.running.values()):
            return 0
        return self.card.parallel - len(self.running)

    @property
    def given_up(self) -> Failure | None:
        """Why it cannot be loaded, where nobody waits for the next attempt; else None."""
        return self.failure if self.failure is not None and self.failure.again_at > self.patient_until else None

    def be_patient(self, now: Now) -> None:
        """Have those who were accepted wait where it cannot be loaded: it could be not long ago."""
        self.patient_until = now.mono + _PATIENCE_S

    def next_survivor(self) -> Stream | None:
        """Take out the survivor that goes on now, if one can."""
        return self.survivors.next(self.running.values(), self.card.parallel) if self.card else None

    def make_way(self) -> list[Stream]:
        """Set those aside that have been cleared while others have not, or are held before they could be.

        Returns:
            Who is to be cancelled for it.
        """
        others = self.survivors.suspects
        running = [s for s in self.running.values() if s.state is State.RUNNING and not s.aside]
        gone = [s for s in running if (s.holds if s.suspected else others)]
        for stream in gone:
            stream.aside = True
        return gone

    def let_go(self, uid: int) -> Stream | None:
        """The child has done with a request: the stream that ends with that; None for one that only made way."""
        stream = self.running.pop(uid, None)
        if stream is not None and stream.aside and stream.ending is None:
            stream.make_way()
            self.survivors.add(stream)
            return None
        return stream

    def is_news(self, event: EngineLost) -> bool:
        """Whether a loss says more than the one before: the same reason at every attempt to load would fill the log."""
        return event.error is None or self.card is not None or event.reason != self._reason

    def lose(self, event: EngineLost, now: Now) -> list[tuple[Stream, Ending]]:
        """The child is gone: who ends with it, and how. The others wait to go on."""
        if self.card is not None:
            self.be_patient(now)
        self.card, self.fraction = None, 0.0
        self.failure = Failure.of(event, now)
        self._reason = event.reason if self.failure else None
        streams = sorted(self.running.values(), key=lambda stream: stream.uid)
        self.running.clear()
        ends = []
        for stream in streams:
            ending = stream.outlive(outside=event.outside)
            if ending is None:
                self.survivors.add(stream)
            else:
                ends.append((stream, ending))
        return ends


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
    def surviving(self) -> list[Stream]:
        """Every stream that outlived its engine, and waits to go on."""
        return [stream for engine in self._engines.values() for stream in engine.survivors]

    @property
    def begun(self) -> list[Stream]:
        """Every stream that may have text to send."""
        return self.running + self.surviving

    @property
    def ending(self) -> list[Stream]:
        """Every stream that is to end before the node goes.

        Who waits for a model that cannot be loaded is the next daemon's: nothing would come of it here.
        """
        waiting = [stream for engine in self._engines.values() if engine.failure is None for stream in engine.survivors]
        return self.running + waiting

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
            engine.survivors.clear()
