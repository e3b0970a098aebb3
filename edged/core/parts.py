"""What the core's deciders share: everything that is known, in one place, and the smallest things to do with it."""

from __future__ import annotations

import random

from edged.core.admission import Admission
from edged.core.courier import Courier
from edged.core.deadlines import Deadlines
from edged.core.early import Early
from edged.core.events import Effect, MessageArrived, Now, Properties
from edged.core.fleet import Fleet
from edged.core.holds import Holds
from edged.core.intake import Intake
from edged.core.meter import Meter
from edged.core.outlet import Outlet
from edged.core.queue import WaitingQueue
from edged.core.records import History, Key
from edged.core.settings import CoreSettings
from edged.core.stream import Stream
from edged.wire.messages import Reply


class Parts:
    """All of the node's state but for its presence.

    Attributes:
        streams: every request that the journal does not answer for: those that run or wait, and those whose end is not
            recorded yet.
        ending: the latter, by uid.
        uid: the number of the last request.
        largest: bytes of the largest packet that the broker takes; None where it says nothing.
    """

    def __init__(self, settings: CoreSettings, rng: random.Random, history: History) -> None:
        self.settings = settings
        self.rng = rng
        self.history = history
        self.intake = Intake(settings)
        self.meter = Meter()
        self.out = Outlet(settings, self.meter)
        self.queue = WaitingQueue()
        self.fleet = Fleet(model.alias for model in settings.models)
        self.admission = Admission(settings, self.fleet, self.queue)
        self.courier = Courier(history, most=settings.max_waiting)
        self.deadlines = Deadlines()
        self.holds = Holds(settings.max_pause_s)
        self.early = Early()
        self.streams: dict[Key, Stream] = {}
        self.ending: dict[int, Stream] = {}
        self.uid = 0
        self.largest: int | None = None

    def add(self, stream: Stream) -> None:
        """A request is here."""
        self.streams[stream.key] = stream
        self.deadlines.add(stream, len(self.streams))

    def say_accepted(self, stream: Stream, now: Now) -> None:
        """The first message of a stream."""
        if stream.only_final:
            return
        node, boot = self.settings.topics.node, self.settings.boot
        position = 0 if self.fleet[stream.model].free > 0 else self.position(stream)
        self.courier.say(stream.delivery, stream.accepted(node=node, boot=boot, position=position, now=now))

    def position(self, stream: Stream) -> int:
        """The place of a waiting request among those of its model, from 1."""
        survivors = self.fleet[stream.model].survivors
        if stream in survivors:
            return list(survivors).index(stream) + 1
        return len(survivors) + self.queue.ahead_of(stream) + 1

    def properties(self, event: MessageArrived) -> Properties:
        """Of the messages that answer one."""
        return Properties(expiry_s=self.settings.keep_s, correlation=event.correlation)

    def say(self, stream: Stream, message: Reply | None) -> None:
        """A message without generated text; None is nothing to say."""
        if message is not None:
            self.courier.say(stream.delivery, message)

    def do(self, effects: list[Effect]) -> None:
        """Add effects as they are."""
        for effect in effects:
            self.out.do(effect)
