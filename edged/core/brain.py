"""The daemon's decisions: `effects = core.handle(event, now)`."""

from __future__ import annotations

import random

from edged.core.ends import Ends
from edged.core.events import (
    BrokerConnected,
    BrokerDisconnected,
    Cancel,
    Confirmations,
    Drain,
    Effect,
    EngineLoading,
    EngineLost,
    EngineReady,
    EngineStep,
    Event,
    Leave,
    MessageArrived,
    Now,
    Publish,
    Published,
    Stop,
    Synced,
    Written,
)
from edged.core.fleet import Engine
from edged.core.parts import Parts
from edged.core.presence import Load, Presence
from edged.core.receipts import Receipts
from edged.core.reception import Reception
from edged.core.records import History, Restored
from edged.core.recovery import Recovery
from edged.core.settings import CoreSettings
from edged.core.stream import Ending, Stream
from edged.wire.errors import ErrorCode
from edged.wire.messages import Error, NodeState

#: What an engine may take to let go of what was cancelled when the grace period is over, seconds.
_LET_GO_S = 2.0


class Core:
    """All of the daemon's state, and what follows from each event.

    Args:
        settings: the node's.
        now: the time of the start.
        rng: where seeds come from.
        history: what was recorded.
    """

    def __init__(self, settings: CoreSettings, now: Now, rng: random.Random, history: History) -> None:
        self._parts = Parts(settings, rng, history)
        self._ends = Ends(self._parts)
        self._reception = Reception(self._parts, self._ends)
        self._receipts = Receipts(self._parts, self._ends)
        self._presence = Presence(settings, now)
        self._connections = 0
        self._drain_until: float | None = None
        self._letting_go = False
        self._stopped = False

    def will(self, now: Now) -> Publish:
        """The last will, for the connection to be made."""
        return self._presence.will(now)

    def handle(self, event: Event, now: Now) -> list[Effect]:
        """Decide what follows from an event. The effects are to be performed in order, before the next event."""
        # Writing is answered all the time, and nothing else follows but where it was not possible before.
        if isinstance(event, Written) and not self._receipts.written(event, now):
            return self._effects(now)
        match event:
            case MessageArrived():
                self._reception.arrived(event, now)
            case EngineStep():
                self._step(event, now)
            case Published() | Confirmations():
                for one in (event,) if isinstance(event, Published) else event.of:
                    self._receipts.published(one, now)
            case Synced():
                self._receipts.synced(event, now)
            case EngineReady() | EngineLoading() | EngineLost():
                self._engine_changed(event, now)
            case BrokerConnected() | BrokerDisconnected():
                self._broker_changed(event, now)
            case Drain() | Leave():
                self._end(event, now)
        self._on_time(now)
        self._flush(now)
        self._schedule(now)
        self._tell(now)
        self._show(now)
        return self._effects(now)

    def restore(self, restored: Restored, now: Now) -> list[Effect]:
        """Take over what an earlier daemon left behind; once, before the first event."""
        Recovery(self._parts, self._ends).restore(restored, now)
        return self._effects(now)

    def _effects(self, now: Now) -> list[Effect]:
        courier = self._parts.courier
        return [*courier.take(), *self._parts.out.take(), *courier.record(now)]

    def wake_at(self) -> float | None:
        """When a `Tick` is wanted if nothing else happens, in monotonic seconds; None = not at all."""
        due = [self._presence.metrics_at]
        if self._parts.deadlines.next is not None:
            due.append(self._parts.deadlines.next)
        if self._drain_until is not None and not self._stopped:
            due.append(self._drain_until)
        if self._parts.courier.connected:
            unsaid = self._presence.unsaid(self._state, cards=self._parts.fleet.cards, load=self._load)
            due += [] if unsaid is None else [unsaid]
        parts = self._parts
        due += [at for at in (parts.courier.wake_at, parts.holds.next, parts.early.next) if at is not None]
        due += [at for stream in self._parts.fleet.begun if (at := self._flush_due(stream)) is not None]
        soonest = min(due)
        return None if soonest == float("inf") else soonest

    # --- the engine ---

    def _schedule(self, now: Now) -> None:
        """Give streams to engines with a free place: those that outlived theirs first, then those that wait."""
        courier = self._parts.courier
        if self._stopped:
            return
        for alias, engine in self._parts.fleet.items():
            for gone in engine.make_way():
                self._parts.out.do(Cancel(gone.model, gone.uid))
            before = len(engine.survivors)
            while (stream := engine.next_survivor()) is not None:
                self._give(stream, engine, now)
            if count := before - len(engine.survivors):
                self._parts.out.log("info", "streams go on", model=alias, streams=count, waiting=len(engine.survivors))
            if self._drain_until is not None:
                continue  # they are the next daemon's
            if courier.failure is not None or courier.undelivered >= self._parts.settings.max_queue:
                continue  # what they say would only wait
            while self._parts.queue and engine.free > 0:
                stream = self._parts.queue.next(alias, self._parts.fleet.running_per_client)
                if stream is None:
                    break
                self._give(stream, engine, now)

    def _tell(self, now: Now) -> None:
        """Tell those who want to know it how far they, or their turn, are."""
        if self._stopped:
            return
        for stream in self._parts.fleet.running:
            self._parts.say(stream, stream.news(now))
        waiting = [stream for stream in self._parts.fleet.surviving if stream.request.progress]
        for stream in (*waiting, *self._parts.queue.watched.values()):
            engine, position = self._parts.fleet[stream.model], self._parts.position(stream)
            if engine.card is not None:
                self._parts.say(stream, stream.progress("queued", now, position=position))
            else:
                done = round(engine.fraction * 100)
                self._parts.say(stream, stream.progress("loading", now, position=position, done=done, total=100))

    def _give(self, stream: Stream, engine: Engine, now: Now) -> None:
        engine.running[stream.uid] = stream
        self._parts.out.do(stream.begin(now))
        self._parts.do(self._parts.holds.begun(stream))
        self._parts.courier.keep(stream.standing())

    def _step(self, event: EngineStep, now: Now) -> None:
        if self._stopped:  # `offline` has been said: it is the next daemon's
            return
        engine = self._parts.fleet[event.model]
        for progress in event.prefill:
            if stream := engine.running.get(progress.uid):
                self._parts.say(stream, stream.news(now))  # first, because only one is allowed now
                self._parts.say(stream, stream.progress("prefill", now, done=progress.done, total=progress.total))
        for delta in event.deltas:
            stream = engine.running.get(delta.uid)
            if stream is not None and not stream.aside:
                stream.add(delta.text, delta.tokens, now, event.held_s)
                self._parts.meter.tokens(len(delta.tokens), now)
        for finished in event.finished:
            if stream := engine.let_go(finished.uid):
                self._ends.finish(stream, stream.ended(finished), finished, now)

    def _engine_changed(self, event: EngineReady | EngineLoading | EngineLost, now: Now) -> None:
        engine = self._parts.fleet[event.model]
        if isinstance(event, EngineLost):
            self._lost(engine, event, now)
            return
        engine.failure = None
        if isinstance(event, EngineReady):
            engine.card = event.card
            self._parts.out.log("info", "model ready", model=event.model, **event.card.model_dump(exclude={"alias"}))
        else:
            engine.fraction = event.fraction

    def _lost(self, engine: Engine, event: EngineLost, now: Now) -> None:
        self._parts.meter.engine_restarts += 1
        running, is_news = len(engine.running), engine.is_news(event)
        ends = engine.lose(event, now)
        if is_news:
            figures = {"outside": event.outside, "running": running, "resuming": len(engine.survivors)}
            again = {"retry_in_s": round(event.retry_in_s, 1)}
            self._parts.out.log("error", "engine lost", model=event.model, reason=event.reason, **figures, **again)
        for stream in engine.survivors:
            self._parts.courier.keep(stream.standing(begun=False))
        for stream, ending in ends:
            self._ends.finish(stream, ending, None, now)
        if (failure := engine.given_up) is not None:
            error = failure.error(now)
            for stream in [*engine.survivors, *(s for s in self._parts.queue if s.model == event.model)]:
                self._ends.cancel(stream, Ending("error", error), now)

    # --- ends ---

    # --- time ---

    def _on_time(self, now: Now) -> None:
        while stream := self._parts.deadlines.passed(now):
            waited = "before it began" if stream.started is None else "while it ran"
            took = now.mono - stream.arrived.mono
            error = Error.of(ErrorCode.TIMEOUT, f"the deadline passed {waited}, after {took:.1f} s")
            self._ends.cancel(stream, Ending("error", error), now)
        if self._presence.metrics_at <= now.mono:
            self._parts.out.do(
                self._presence.metrics(
                    self._parts.meter,
                    load=self._load,
                    reconnects=max(0, self._connections - 1),
                    outbox=self._parts.courier.unconfirmed + self._parts.out.unconfirmed,
                    now=now,
                )
            )
        self._parts.do(self._parts.holds.on_time(now))
        self._reception.on_time(now)
        self._parts.courier.on_time(now)
        if self._drain_until is not None:
            self._drain_on(now)

    def _flush_due(self, stream: Stream) -> float | None:
        if self._stopped:
            return None
        settings = self._parts.settings
        return stream.flush_due(
            flush_s=settings.flush_s, flush_tokens=settings.flush_tokens, max_waiting=settings.max_waiting
        )

    def _flush(self, now: Now) -> None:
        """Send the chunks that are due or nearly so, and with them those that soon will be; see whose text waits.

        One write and one wake-up for all of them, and none for the little time that is left of `flush_s`.
        """
        due = [(at, stream) for stream in self._parts.fleet.begun if (at := self._flush_due(stream)) is not None]
        flush_s = self._parts.settings.flush_s
        if any(at <= now.mono + flush_s / 4 for at, _ in due):
            for at, stream in due:
                if at <= now.mono + flush_s / 2:
                    self._ends.say_chunk(stream, now)
        for stream in self._parts.fleet.begun:
            self._parts.do(self._parts.holds.weigh(stream))

    def _broker_changed(self, event: BrokerConnected | BrokerDisconnected, now: Now) -> None:
        if isinstance(event, BrokerConnected):
            self._connections += 1
            self._parts.largest = event.maximum_packet
            self._parts.courier.connection(up=True)
            self._show(now, force=True)
        else:
            self._parts.courier.connection(up=False)
            self._parts.out.forget_acks()

    # --- the end, and what the node shows ---

    def _end(self, event: Drain | Leave, now: Now) -> None:
        if isinstance(event, Leave):
            if not self._stopped:
                self._leave(now)
            return
        self._drain_until = now.mono + event.grace_s
        self._parts.admission.closed = True
        self._show(now, force=True)

    def _drain_on(self, now: Now) -> None:
        """When the grace period is over: cancel what has begun; if the engine does not let go of it, end it without."""
        begun = self._parts.fleet.ending
        if begun and self._drain_until is not None and now.mono >= self._drain_until:
            if not self._letting_go:
                self._letting_go = True
                self._drain_until = now.mono + _LET_GO_S
                for stream in begun:
                    self._ends.cancel(stream, Ending("cancelled"), now)
            else:
                self._parts.fleet.clear()
                for stream in begun:
                    self._ends.finish(stream, stream.ending or Ending("cancelled"), None, now)
        if not self._parts.fleet.ending and not self._stopped:
            self._leave(now)

    def _leave(self, now: Now) -> None:
        self._stopped, self._drain_until = True, None
        self._show(now, force=True)
        self._parts.out.do(Stop())

    @property
    def _state(self) -> NodeState:
        if self._stopped:
            return "offline"
        if self._drain_until is not None:
            return "draining"
        if not self._parts.fleet.cards:
            return "loading"
        return "online" if self._parts.fleet.has_room else "busy"

    @property
    def _load(self) -> Load:
        waiting = len(self._parts.fleet.surviving) + len(self._parts.queue)
        return Load(len(self._parts.fleet.running), waiting, self._parts.settings.max_queue)

    def _show(self, now: Now, *, force: bool = False) -> None:
        """Publish the card where it is due."""
        if not self._parts.courier.connected:
            return
        card = self._presence.status(
            self._state, cards=self._parts.fleet.cards, load=self._load, meter=self._parts.meter, now=now, force=force
        )
        if card is not None:
            self._parts.out.do(card)
