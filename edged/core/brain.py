"""The daemon's decisions: `effects = core.handle(event, now)`."""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict

from edged.core.events import (
    BrokerConnected,
    BrokerDisconnected,
    Cancel,
    Drain,
    Effect,
    EngineLoading,
    EngineLost,
    EngineReady,
    EngineStep,
    Event,
    Finished,
    Generate,
    MessageArrived,
    Now,
    Properties,
    Publish,
    Published,
    Stop,
    Tick,
)
from edged.core.fleet import Engine, Fleet
from edged.core.intake import Intake, Order, Refusal
from edged.core.meter import Meter
from edged.core.outlet import Outlet
from edged.core.presence import Presence
from edged.core.queue import WaitingQueue
from edged.core.settings import CoreSettings
from edged.core.stream import Ending, Key, State, Stream
from edged.wire.errors import ErrorCode
from edged.wire.messages import Error, NodeState, Queue
from edged.wire.request import MAX_SEED
from edged.wire.topics import Kind

#: So many ended requests are remembered, for whom another `cancel` is harmless.
_RECENT = 1024
#: What an engine may take to let go of what was cancelled when the grace period is over, seconds.
_LET_GO_S = 2.0
#: Weight of the newest request in the running average of service times.
_NEWEST = 0.1


class Core:
    """All of the daemon's state, and what follows from each event.

    Args:
        settings: the node's.
        now: the time of the start.
        rng: where seeds come from.
    """

    def __init__(self, settings: CoreSettings, now: Now, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._intake = Intake(settings)
        self._meter = Meter()
        self._out = Outlet(settings, self._meter)
        self._presence = Presence(settings, now)
        self._queue = WaitingQueue()
        self._fleet = Fleet(model.alias for model in settings.models)
        self._streams: dict[Key, Stream] = {}
        self._recent: OrderedDict[Key, None] = OrderedDict()
        self._deadlines: list[tuple[float, int, Stream]] = []
        self._uid = 0
        self._service_s = 1.0
        self._connections = 0
        self._connected = False
        self._drain_until: float | None = None
        self._letting_go = False
        self._stopped = False

    def will(self, now: Now) -> Publish:
        """The last will, for the connection to be made."""
        return self._presence.will(now)

    def handle(self, event: Event, now: Now) -> list[Effect]:
        """Decide what follows from an event. The effects are to be performed in order, before the next event."""
        match event:
            case MessageArrived():
                self._arrived(event, now)
            case EngineStep():
                self._step(event, now)
            case Published():
                self._published(event)
            case EngineReady() | EngineLoading() | EngineLost():
                self._engine_changed(event, now)
            case BrokerConnected() | BrokerDisconnected():
                self._broker_changed(event, now)
            case Drain():
                self._drain(event, now)
            case Tick():
                pass
        self._on_time(now)
        self._schedule(now)
        self._flush(now)
        self._show(now)
        return self._out.take()

    def wake_at(self) -> float | None:
        """When a `Tick` is wanted if nothing else happens, in monotonic seconds; None = not at all."""
        due = [self._presence.metrics_at]
        if self._deadlines:
            due.append(self._deadlines[0][0])
        if self._drain_until is not None and not self._stopped:
            due.append(self._drain_until)
        if self._connected:
            unsaid = self._presence.unsaid(self._state, cards=self._fleet.cards, queue=self._load)
            due += [] if unsaid is None else [unsaid]
        due += [at for stream in self._fleet.running if (at := self._flush_due(stream)) is not None]
        soonest = min(due)
        return None if soonest == float("inf") else soonest

    # --- messages that come in ---

    def _arrived(self, event: MessageArrived, now: Now) -> None:
        kind, _ = self._settings.topics.split(event.topic)
        if event.retain:
            self._out.ignored(event.topic, now)
        else:
            try:
                if kind is Kind.CTL:
                    self._control(event, now)
                elif kind is Kind.SESSION:
                    raise self._intake.misdirected(event, "`session`: conversations are not supported by this version")
                else:
                    self._request(event, now)
            except Refusal as why:
                self._refuse(why, event, now)
        self._out.acknowledge(event.ack)

    def _request(self, event: MessageArrived, now: Now) -> None:
        self._uid += 1
        made_id = f"{self._settings.boot:x}-{self._uid:x}"
        order = self._intake.order(event, made_id=made_id, seed=self._rng.randrange(MAX_SEED))
        known = self._streams.get(order.key)
        if known is not None:
            if known.digest == order.digest:
                self._out.log("info", "request repeated while it runs", id=str(order.key))
                return
            message = f"a request with id {order.key.id!r} and another body is running: choose another id"
            raise Refusal(ErrorCode.ID_CONFLICT, message, order.key.id, order.topic, public=True)
        self._check_room(order)
        timeout_s = min(t for t in (self._settings.timeout_s, order.request.timeout_s, event.expiry_s) if t is not None)
        stream = Stream(
            uid=self._uid,
            key=order.key,
            request=order.request,
            model=order.model,
            sampling=order.sampling,
            digest=order.digest,
            topic=order.topic,
            properties=self._properties(event),
            arrived=now,
            deadline=now.mono + timeout_s,
            only_final=order.only_final,
        )
        self._streams[stream.key] = stream
        self._remember_deadline(stream)
        self._meter.accepted += 1
        self._queue.add(stream)
        if not stream.only_final:
            node, boot = self._settings.topics.node, self._settings.boot
            position = 0 if self._fleet[stream.model].free > 0 else self._queue.ahead_of(stream) + 1
            self._out.say(stream, stream.accepted(node=node, boot=boot, position=position, now=now))

    def _check_room(self, order: Order) -> None:
        """Refuse what the node will not take on now."""
        settings, key = self._settings, order.key
        code = ErrorCode.OVERLOADED
        if self._drain_until is not None:
            code, message = ErrorCode.DRAINING, "this node is shutting down: try again soon"
        elif self._fleet[order.model].free > 0:  # then none of its requests waits
            return
        elif len(self._queue) >= settings.max_queue:
            message = f"the queue is full: {settings.max_queue} requests are waiting (setting limits.max_queue)"
        elif self._queue.of_client(key.client) >= settings.max_queue_per_client:
            message = (
                f"{settings.max_queue_per_client} requests of this client are waiting already "
                "(setting limits.max_queue_per_client)"
            )
        else:
            return
        raise Refusal(code, message, key.id, order.topic, public=order.unheard)

    def _control(self, event: MessageArrived, now: Now) -> None:
        key = self._intake.control(event)
        stream = self._streams.get(key)
        if stream is not None:
            self._cancel(stream, Ending("cancelled"), now)
        elif key not in self._recent:
            message = f"no request with id {key.id!r} is waiting or running here"
            raise Refusal(ErrorCode.UNKNOWN_REQUEST, message, key.id, self._settings.topics.reply(key.path))

    def _refuse(self, why: Refusal, event: MessageArrived, now: Now) -> None:
        retry_after_ms = None
        if why.code is ErrorCode.OVERLOADED:
            retry_after_ms = max(250, round(self._service_s / self._fleet.places * 1000))
        properties = self._properties(event)
        self._out.refuse(why, properties, now, came_in=event.topic, qos=event.qos, retry_after_ms=retry_after_ms)

    def _properties(self, event: MessageArrived) -> Properties:
        return Properties(expiry_s=self._settings.keep_s, correlation=event.correlation)

    def _published(self, event: Published) -> None:
        stream = self._out.confirmed(event.token)
        if event.reason_code >= 0x80:
            what = {"id": str(stream.key), "topic": stream.topic} if stream else {}
            self._out.log("warning", "broker refused a message", reason_code=event.reason_code, **what)

    # --- the engine ---

    def _schedule(self, now: Now) -> None:
        """Give waiting requests to engines with a free place."""
        for alias, engine in self._fleet.items():
            while engine.free > 0 and (stream := self._queue.next(alias, self._fleet.running_per_client)) is not None:
                stream.state = State.RUNNING
                stream.started = now.mono
                engine.running[stream.uid] = stream
                request = stream.request
                messages = None if request.raw else tuple((m.role, m.content) for m in request.conversation)
                self._out.do(
                    Generate(alias, stream.uid, messages, request.prompt, stream.sampling, progress=request.progress)
                )
        for stream in self._queue.watched.values():
            position = self._queue.ahead_of(stream) + 1
            engine = self._fleet[stream.model]
            if engine.card is not None:
                self._out.say(stream, stream.progress("queued", now, position=position))
            else:
                done = round(engine.fraction * 100)
                self._out.say(stream, stream.progress("loading", now, position=position, done=done, total=100))

    def _step(self, event: EngineStep, now: Now) -> None:
        engine = self._fleet[event.model]
        for progress in event.prefill:
            if stream := engine.running.get(progress.uid):
                self._out.say(stream, stream.progress("prefill", now, done=progress.done, total=progress.total))
        for delta in event.deltas:
            if stream := engine.running.get(delta.uid):
                stream.add(delta.text, delta.n, now)
                self._meter.tokens(delta.n, now)
        for finished in event.finished:
            if stream := engine.running.pop(finished.uid, None):
                self._finish(stream, self._ending(stream, finished), finished, now)

    @staticmethod
    def _ending(stream: Stream, finished: Finished) -> Ending:
        """How it ends: as the engine says, unless the core had it stopped."""
        if finished.reason in ("cancelled", "error") and stream.ending is not None:
            return stream.ending
        if finished.reason == "error":
            return Ending("error", Error.of(finished.error or ErrorCode.INTERNAL, finished.message))
        if finished.reason == "length":
            return Ending("length")
        return Ending("cancelled" if finished.reason == "cancelled" else "stop")

    def _engine_changed(self, event: EngineReady | EngineLoading | EngineLost, now: Now) -> None:
        engine = self._fleet[event.model]
        if isinstance(event, EngineReady):
            engine.card = event.card
            self._out.log("info", "model ready", model=event.model, **event.card.model_dump(exclude={"alias"}))
        elif isinstance(event, EngineLoading):
            engine.fraction = event.fraction
        else:
            self._lost(engine, event, now)

    def _lost(self, engine: Engine, event: EngineLost, now: Now) -> None:
        engine.card, engine.fraction = None, 0.0
        self._meter.engine_restarts += 1
        self._out.log("error", "engine lost", model=event.model, reason=event.reason, running=len(engine.running))
        streams, engine.running = list(engine.running.values()), {}
        for stream in streams:
            died = Error.of(ErrorCode.INTERNAL, "the engine died while it generated this answer: try again")
            self._finish(stream, stream.ending or Ending("error", died), None, now)

    # --- ends ---

    def _cancel(self, stream: Stream, ending: Ending, now: Now) -> None:
        """Stop a stream, wherever it stands."""
        if stream.state is State.WAITING:
            self._queue.remove(stream)
            self._finish(stream, ending, None, now)
        elif stream.state is State.RUNNING:
            stream.state = State.CANCELLING
            stream.ending = ending
            self._out.do(Cancel(stream.model, stream.uid))

    def _finish(self, stream: Stream, ending: Ending, engine: Finished | None, now: Now) -> None:
        self._out.say(stream, stream.chunk(now))
        final = stream.final(ending, engine, node=self._settings.topics.node, now=now)
        self._out.say(stream, final)
        del self._streams[stream.key]
        self._recent[stream.key] = None
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        self._meter.finished[ending.reason] += 1
        if final.usage:
            self._meter.prompt_tokens += final.usage.prompt_tokens
        if stream.started is not None:
            self._service_s += _NEWEST * (now.mono - stream.started - self._service_s)
        self._out.log("info", "request", **stream.summary(final))

    # --- time ---

    def _on_time(self, now: Now) -> None:
        while self._deadlines and (self._deadlines[0][2].state is State.ENDED or self._deadlines[0][0] <= now.mono):
            stream = heapq.heappop(self._deadlines)[2]
            if stream.state is not State.ENDED:
                waited = "before it began" if stream.state is State.WAITING else "while it ran"
                took = now.mono - stream.arrived.mono
                error = Error.of(ErrorCode.TIMEOUT, f"the deadline passed {waited}, after {took:.1f} s")
                self._cancel(stream, Ending("error", error), now)
        if self._presence.metrics_at <= now.mono:
            self._out.do(
                self._presence.metrics(
                    self._meter,
                    queue=self._load,
                    reconnects=max(0, self._connections - 1),
                    outbox=self._out.unconfirmed,
                    now=now,
                )
            )
        if self._drain_until is not None:
            self._drain_on(now)

    def _remember_deadline(self, stream: Stream) -> None:
        if len(self._deadlines) > 2 * len(self._streams) + 64:  # most of them are of streams that have ended
            self._deadlines = [entry for entry in self._deadlines if entry[2].state is not State.ENDED]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (stream.deadline, stream.uid, stream))

    def _flush_due(self, stream: Stream) -> float | None:
        settings = self._settings
        return stream.flush_due(
            flush_s=settings.flush_s, flush_tokens=settings.flush_tokens, max_waiting=settings.max_waiting
        )

    def _flush(self, now: Now) -> None:
        for stream in self._fleet.running:
            due = self._flush_due(stream)
            if due is not None and due <= now.mono:
                self._out.say(stream, stream.chunk(now))

    def _broker_changed(self, event: BrokerConnected | BrokerDisconnected, now: Now) -> None:
        self._connected = isinstance(event, BrokerConnected)
        if self._connected:
            self._connections += 1
            self._show(now, force=True)
        else:
            self._out.forget_acks()

    # --- the end, and what the node shows ---

    def _drain(self, event: Drain, now: Now) -> None:
        self._drain_until = now.mono + event.grace_s
        self._show(now, force=True)
        for stream in list(self._queue):
            error = Error.of(ErrorCode.DRAINING, "this node is shutting down before it came to this: try again soon")
            self._cancel(stream, Ending("error", error), now)

    def _drain_on(self, now: Now) -> None:
        """When the grace period is over: cancel what runs; if the engine does not let go of it, end it without."""
        if self._fleet.running and self._drain_until is not None and now.mono >= self._drain_until:
            running = self._fleet.running
            if not self._letting_go:
                self._letting_go = True
                self._drain_until = now.mono + _LET_GO_S
                for stream in running:
                    self._cancel(stream, Ending("cancelled"), now)
            else:
                self._fleet.clear()
                for stream in running:
                    self._finish(stream, stream.ending or Ending("cancelled"), None, now)
        if not self._fleet.running and not self._stopped:
            self._stopped = True
            self._show(now, force=True)
            self._out.do(Stop())

    @property
    def _state(self) -> NodeState:
        if self._stopped:
            return "offline"
        if self._drain_until is not None:
            return "draining"
        if not self._fleet.cards:
            return "loading"
        return "online" if self._fleet.has_room else "busy"

    @property
    def _load(self) -> Queue:
        return Queue(running=len(self._fleet.running), waiting=len(self._queue), capacity=self._settings.max_queue)

    def _show(self, now: Now, *, force: bool = False) -> None:
        """Publish the card where it is due."""
        if not self._connected:
            return
        card = self._presence.status(
            self._state, cards=self._fleet.cards, queue=self._load, meter=self._meter, now=now, force=force
        )
        if card is not None:
            self._out.do(card)
