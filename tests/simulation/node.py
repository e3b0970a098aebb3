"""The daemon's side: the real core, outbox and journal, put together as `edged.daemon` does it, and killed anywhere."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from edged.core import events
from edged.core.brain import Core
from edged.core.events import Published
from edged.core.settings import CoreSettings
from edged.mqtt.outbox import Outbox
from tests.simulation.broker import Broker
from tests.simulation.checks import Broken, Checks
from tests.simulation.clock import Agenda, Clock
from tests.simulation.disk import Disk
from tests.simulation.engine import Engine
from tests.simulation.uplink import Ack, Uplink

#: Ticks without an event or time passing between them, at most.
_MOST_TICKS = 200
#: So much later than wanted a tick comes, as in life: a sum of floats is not to be early. Seconds.
_LATE_S = 1e-6
#: How long the last messages may take to leave when the daemon ends in order, seconds.
_FAREWELL_S = 5.0


class Killed(Exception):  # noqa: N818 - it is no error of ours
    """The process ends here, between two effects."""


class Node:
    """One process of the daemon, from its start to its end.

    Args:
        fuse: so many effects until it is killed.
        on_death: called once, where it ends.
    """

    def __init__(
        self,
        settings: CoreSettings,
        agenda: Agenda,
        clock: Clock,
        rng: random.Random,
        checks: Checks,
        broker: Broker,
        disk: Disk,
        engine: Callable[[Node], Engine],
        *,
        window: int,
        on_death: Callable[[], None],
    ) -> None:
        self.agenda = agenda
        self.clock = clock
        self.rng = rng
        self.checks = checks
        self.broker = broker
        self.dead = False
        self.left = False
        self._disk = disk
        self._on_death = on_death
        self._inbox: deque[Callable[[], list[events.Event]]] = deque()
        self._awake = False
        self._fuse: int | None = None
        self._tick_at: float | None = None
        self._ticks = 0
        self._ticked_at = -1.0
        self._leave_at: float | None = None
        self._handled = 0
        self._early: Callable[[], list[events.Event]] | None = None
        restored = disk.open(lambda synced: self.post(lambda: [synced]))
        self.core = Core(settings, clock.now, rng, disk.journal)
        self._settings = settings
        self.outbox = Outbox(capacity=1000)
        self.main = Uplink(self, "edged-n", self.outbox, window)
        self.control = Uplink(self, "edged-n-ctl", None, window)
        self.engine = engine(self)
        checks.begins_life(self)
        self._guarded(lambda: self._perform_all(self.core.restore(restored, clock.now)))
        if not self.dead:
            self.main.connect()
            self.control.connect()
            self.engine.start(rng.random())
            self._plan_tick()

    # --- its end ---

    def kill_in(self, effects: int) -> None:
        """It is killed after so many effects more."""
        self._fuse = effects

    def kill(self) -> None:
        """It is killed now."""
        self._end(late=self.rng.random() < 0.5)
        self._disk.die()

    def _end(self, *, late: bool) -> None:
        self.dead = True
        self.engine.vanish()
        self.main.drop(late=late)
        self.control.drop(late=late)
        self.checks.ends_life(self)
        self._on_death()

    def drain(self, grace_s: float) -> None:
        """SIGTERM."""
        self.post(lambda: [events.Drain(grace_s)])

    def _leave(self) -> None:
        if self.dead:
            return
        self.left = True
        self._disk.close()
        self._end(late=True)

    # --- its loop ---

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Do something later, if it still lives."""
        self.agenda.after(seconds, lambda: None if self.dead else call())

    def post(self, item: Callable[[], list[events.Event]]) -> None:
        """Into the inbox."""
        if self.dead:
            return
        self._inbox.append(item)
        if not self._awake:
            self._awake = True
            self.after(self.rng.random() * 0.002, self._turn)

    def _turn(self) -> None:
        self._awake = False
        self._guarded(self._work)
        if not self.dead:
            self._plan_tick()

    def _work(self) -> None:
        """One thing after the other; confirmations that stand together are taken in together."""
        while self._inbox:
            confirmed: list[Published] = []
            others: list[events.Event] = []
            while self._inbox and not others:
                for event in self._inbox.popleft()():
                    if isinstance(event, Published):
                        confirmed.append(event)
                    else:
                        others.append(event)
            if confirmed:
                self._handle(events.Confirmations(tuple(confirmed)))
            for event in others:
                self._handle(event)

    def _guarded(self, do: Callable[[], None]) -> None:
        try:
            do()
        except Killed:
            self.kill()

    def _handle(self, event: events.Event) -> None:
        if self.checks.trace is not None:
            self.checks.note(f"event {str(event)[:120]}")
        match event:
            case events.MessageArrived():
                self.checks.asked_for(event.topic, event.payload)
            case events.EngineReady():
                self.checks.engine_is_ready()
            case events.EngineLost():
                self.checks.engine_died(outside=event.outside, error=event.error)
        self._perform_all(self.core.handle(event, self.clock.now))
        self._handled += 1
        if self._handled % 16 == 0:
            self.checks.bounds(self.core, self.outbox, self._settings)

    def _perform_all(self, effects: list[events.Effect]) -> None:
        for effect in effects:
            self._burn()
            self.perform(effect)

    def _burn(self) -> None:
        if self._fuse is not None:
            self._fuse -= 1
            if self._fuse < 0:
                raise Killed

    def perform(self, effect: events.Effect) -> None:
        """What `edged.daemon` does with an effect."""
        match effect:
            case events.Publish():
                self.checks.publishes(effect)
                self.main.publish(effect)
            case events.Record():
                self.record(effect)
            case events.Acknowledge():
                ack = effect.ack
                assert isinstance(ack, Ack)
                self.checks.acknowledges(ack.link, ack.number)
                ack.link.acknowledge(ack.packet_id)
            case events.Generate() | events.Cancel() | events.Hold() | events.Release():
                if isinstance(effect, events.Generate):
                    self.checks.gives(effect)
                self.engine.tell(effect)
            case events.Log():
                self.checks.logs(effect)
            case events.Stop():
                self._leave_at = self.clock.time + (_FAREWELL_S if self.main.ready else 0.0)
                self._wait_to_leave()

    def record(self, effect: events.Record) -> None:
        """Write, and tell the core before anything else is done."""
        error = self._disk.write(effect.rows)
        if error is None:
            self.checks.writes(effect.rows)
        self._burn()
        if error is None and effect.sync:
            self._disk.sync(effect.number)
        self._handle(events.Written(effect.number, error))

    def _wait_to_leave(self) -> None:
        if self._leave_at is not None:
            if not len(self.outbox) or self.clock.time >= self._leave_at:
                self.after(0.0, self._leave)
            else:
                self.after(0.05, self._wait_to_leave)

    def _plan_tick(self) -> None:
        wake = self.core.wake_at()
        if wake is None:
            self._tick_at = None
            return
        at = max(self.clock.time, self.clock.time + wake - self.clock.now.mono + _LATE_S)
        if self._tick_at is not None and self._tick_at <= at and self._tick_at > self.clock.time:
            return
        self._tick_at = at
        self.agenda.at(at, lambda: self._tick(at))

    def _tick(self, at: float) -> None:
        if self.dead or self._tick_at != at:
            return
        self._tick_at = None
        wake = self.core.wake_at()
        if wake is None or wake > self.clock.now.mono:
            self._plan_tick()
            return
        self._ticks = self._ticks + 1 if self.clock.time <= self._ticked_at + _LATE_S else 0
        self._ticked_at = self.clock.time
        if self._ticks > _MOST_TICKS:
            raise Broken(f"the core wants a tick again and again, at {wake}, and it is {self.clock.now.mono}")
        self._guarded(lambda: self._handle(events.Tick()))
        if not self.dead:
            self._plan_tick()

    # --- nobody is told that it is here before it can hear a `cancel` ---

    @property
    def has_control(self) -> bool:
        """Whether control messages reach it."""
        return bool(self.control.connections)

    def wait_for_control(self, then: Callable[[], list[events.Event]]) -> list[events.Event]:
        """The other connection was faster."""
        self._early = then
        return []

    def control_is_ready(self) -> list[events.Event]:
        """Now it may be told."""
        early, self._early = self._early, None
        return early() if early is not None else []
