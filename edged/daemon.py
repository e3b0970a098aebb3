"""The daemon: wires the rooms together, and owns the life cycle and the signals.

The main thread is the core's: `for event in inbox: for effect in core.handle(event, now): perform(effect)`. The
connection and every engine have a thread of their own, which only ever put something into the inbox.
"""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import structlog

from edged import __version__, wiring
from edged.config import Settings
from edged.core import events
from edged.core.brain import Core
from edged.engine import protocol
from edged.engine.files import resolve
from edged.engine.process import EngineProcess, Lost
from edged.heap import keep_less_than
from edged.inbox import Control, FromEngine, Inbox, Single, Stop
from edged.mqtt.connection import Connection
from edged.mqtt.happenings import Arrived, Ended, Happening, Ready, Refused
from edged.observe.notify import Notifier, watchdog_interval_s
from edged.observe.repeats import Repeats
from edged.observe.status import Status
from edged.wire.messages import ModelCard
from edged.wire.topics import Kind

#: What is freed in pieces of so many bytes is not kept: requests may be large. More than engines say at once.
_LARGE = 96 * 1024
#: How long the last messages may take to reach the broker when the daemon stops, seconds.
_FAREWELL_S = 5.0
#: How often the journal forgets some of what is too old, at most, seconds.
_TIDY_S = 1.0

log = structlog.get_logger()


StartEngine = Callable[[protocol.Load, Callable[[int, protocol.Report | Lost], None]], EngineProcess]


class Daemon:
    """One node: a broker connection, a core, and an engine for each model.

    Args:
        settings: all of them, checked.
        start_engine: makes the handle of an engine; tests put a scripted worker here.

    Raises:
        ConfigError: a password or the state directory cannot be used.
        JournalError: the journal cannot be used.
        ModelNotFound: a model file is missing.
        TlsError: a certificate cannot be used.
    """

    def __init__(self, settings: Settings, *, start_engine: StartEngine = EngineProcess) -> None:
        self._settings = settings
        self._inbox = Inbox()
        self._notifier = Notifier()
        self._status = Status((model.alias for model in settings.models), self._notifier.status)
        self._children: dict[str, int] = {}
        self._repeats = Repeats()
        self._stops = 0
        self._early_ready: Ready | None = None
        self._leave_at: float | None = None
        self._files = {model.alias: resolve(model.path) for model in settings.models}
        self._journal = wiring.journal(settings, post=self._inbox.put)
        with ExitStack() as undo:
            undo.callback(self._journal.close, clean=True)
            self._wire(start_engine)
            undo.pop_all()

    def _wire(self, start_engine: StartEngine) -> None:
        settings, files = self._settings, self._files
        self._tidy_at: float | None = time.monotonic()
        self._core = Core(
            wiring.core_settings(settings, wiring.boot_number(settings)),
            self._now(),
            random.SystemRandom(),
            self._journal,
        )
        topics = settings.topics
        self._connection = Connection(
            wiring.broker_settings(settings),
            will=self._core.will(self._now()),
            subscriptions=[topics.filter(kind) for kind in (Kind.REQ, Kind.ASK, Kind.SESSION)],
            post=self._inbox.on_request,
        )
        # Control messages come on a connection of their own, so that they never wait behind requests: neither in the
        # broker's queue nor in the window of what is not acknowledged.
        self._control = Connection(
            wiring.broker_settings(settings, role="ctl"),
            will=None,
            subscriptions=[topics.filter(Kind.CTL)],
            post=self._inbox.on_control,
        )
        self._engines = {
            model.alias: start_engine(
                wiring.load(model, files[model.alias], settings), self._inbox.of_engine(model.alias)
            )
            for model in settings.models
        }

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; a second one leaves at once, a third does not even wait for the broker.

        Returns:
            The exit code.
        """
        with self._signals_to_inbox():
            self.serve()
        return 0

    def serve(self) -> None:
        """Serve until `stop`."""
        topics = self._settings.topics
        log.info("starting", version=__version__, node=topics.node, broker=self._settings.mqtt.host, topics=topics.base)
        try:
            self._perform_all(self._core.restore(self._journal.restored(), self._now()))
            self._connection.start()
            self._control.start()
            for engine in self._engines.values():
                engine.start()
            self._notifier.ready(self._status.line)
            self._loop()
        finally:
            # The order of the end: the broker has heard `offline` by now, from the core, if it listens. The engines go
            # first, they hold the memory; then a DISCONNECT, so that the broker does not publish the will.
            self._inbox.close()
            for engine in self._engines.values():
                engine.stop()
            self._control.stop(_FAREWELL_S)
            self._connection.stop(_FAREWELL_S)
            self._journal.close(clean=True)  # whatever was published is written
        log.info("stopped")

    def stop(self, why: str = "stop") -> None:
        """End as at a signal: drain, and at once when asked again. For any thread."""
        self._inbox.put(Stop(why))

    def _loop(self) -> None:
        interval = watchdog_interval_s()
        fed = time.monotonic()
        while self._leave_at is None or (self._connection.backlog and time.monotonic() < self._leave_at):
            for event in self._next(fed + interval if interval else None):
                self._handle(event)
            self._connection.flush()
            self._control.flush()
            self._tidy()
            if interval and time.monotonic() >= fed + interval and self._healthy():
                fed = time.monotonic()
                self._notifier.watchdog()

    def _next(self, feed_at: float | None) -> list[events.Event]:
        """Wait for what comes next, at the longest until the core or the watchdog wants to act."""
        wake = [at for at in (self._core.wake_at(), self._tidy_at, feed_at, self._leave_at) if at is not None]
        timeout = max(0.0, min(wake) - time.monotonic()) if wake else None
        confirmed, item = self._inbox.get(timeout)
        if item is None and not confirmed:
            return [events.Tick()]
        happened = [event for one in confirmed for event in self._connection.handle(one)]
        published = tuple(event for event in happened if isinstance(event, events.Published))
        # They come in bursts, and deciding once for all of them is enough.
        found: list[events.Event] = [events.Confirmations(published)] if confirmed else []
        return found if item is None else [*found, *self._events(item)]

    def _handle(self, event: events.Event) -> None:
        try:
            effects = self._core.handle(event, self._now())
        except Exception:
            # A defect of ours must not become a defect of the node: nothing that is published ends the daemon.
            log.exception("internal error", event_type=type(event).__name__)
            return
        self._perform_all(effects)

    def _perform_all(self, effects: list[events.Effect]) -> None:
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: events.Effect) -> None:
        match effect:
            case events.Publish():
                self._connection.publish(effect)
            case events.Record():
                self._record(effect)
            case events.Acknowledge():
                self._connection.acknowledge(effect.ack)
            case events.Generate():
                self._engines[effect.model].send(self._children[effect.model], wiring.generate(effect))
            case events.Cancel() | events.Hold() | events.Release():
                self._engines[effect.model].send(self._children[effect.model], wiring.order(effect))
            case events.Log():
                log.log(_LEVELS[effect.level], effect.event, **effect.fields)
            case events.Stop():
                # Without a connection nothing more gets out, and there is nobody to wait for.
                self._leave_at = time.monotonic() + (_FAREWELL_S if self._connection.connected else 0.0)

    def _record(self, effect: events.Record) -> None:
        """Write, and tell the core how that went before anything else is done."""
        try:
            error = self._journal.write(effect.rows)
        except Exception as defect:  # a row of ours that it cannot take: as if it could not be written
            log.exception("internal error in the journal")
            error = f"internal error ({type(defect).__name__})"
        if error is None and effect.sync:
            self._journal.sync(effect.number)
        self._tidy_at = self._tidy_at or time.monotonic() + _TIDY_S
        self._handle(events.Written(effect.number, error))

    def _tidy(self) -> None:
        """Have the journal forget what it need not remember any longer, a little at a time."""
        now = self._now()
        if self._tidy_at is None or now.mono < self._tidy_at:
            return
        due = self._journal.tidy(now.wall)
        self._tidy_at = None if due is None else now.mono + max(_TIDY_S, due - now.wall)

    def _events(self, item: Single) -> list[events.Event]:
        match item:
            case Ready() if not self._control.connections:
                self._early_ready = item  # nobody is told that we are here before a `cancel` can reach us
                return []
            case Ready() | Arrived() | Refused() | Ended():
                self._early_ready = None if isinstance(item, Ended) else self._early_ready
                self._inbox.requests.handle(item)
                happened = self._connection.handle(item)
                for event in happened:
                    self._tell(event)
                return happened
            case Control(happening):
                return self._from_control(happening)
            case events.Synced():
                return [item]
            case FromEngine():
                return self._from_engine(item)
            case Stop():
                return self._on_stop(item)

    def _from_control(self, happening: Happening) -> list[events.Event]:
        """Of this connection only what comes in counts, and that it can."""
        self._inbox.controls.handle(happening)
        happened = self._control.handle(happening)
        waited_for = self._connection.connected or self._early_ready is not None
        if isinstance(happening, Ended) and waited_for:  # else the other one says it already
            log.warning("no connection for control messages", reason=happening.reason)
        ready, self._early_ready = self._early_ready, None if isinstance(happening, Ready) else self._early_ready
        if isinstance(happening, Ready) and ready is not None:
            return self._events(ready)
        return [event for event in happened if isinstance(event, events.MessageArrived)]

    def _tell(self, event: events.Event) -> None:
        if isinstance(event, events.BrokerConnected):
            log.info("connected to broker", host=self._settings.mqtt.host, port=self._settings.mqtt.port)
            self._status.broker()
        elif isinstance(event, events.BrokerDisconnected):
            log.warning("not connected to broker", reason=event.reason)
            self._status.broker(event.reason)

    def _from_engine(self, item: FromEngine) -> list[events.Event]:
        model, report = item.model, item.report
        match report:
            case protocol.Step():
                return [wiring.step(model, report)]
            case protocol.Loading():
                return [events.EngineLoading(model, report.fraction)]
            case protocol.Ready():
                self._children[model] = item.child
                self._status.model(model, "ready")
                self._repeats.ready(model)
                return [events.EngineReady(model, self._card(model, report))]
            case protocol.Note():
                level = report.level if self._repeats.is_news(model, report.text) else "debug"
                log.log(_LEVELS[level], "llama.cpp", model=model, text=report.text)
            case Lost():
                self._status.model(model, report.reason)
                self._repeats.lost(model)
                error = wiring.error_code(report.error)
                return [events.EngineLost(model, report.reason, error, report.outside, report.retry_in_s)]
            case _:
                pass  # Failed: the reason of the Lost that follows
        return []

    def _card(self, alias: str, ready: protocol.Ready) -> ModelCard:
        file = self._files[alias]
        return ModelCard(
            alias=alias,
            file=file.name,
            digest=ready.digest,
            context=ready.context,
            parallel=ready.parallel,
            parameters=ready.parameters,
            quantisation=ready.quantisation,
        )

    def _on_stop(self, item: Stop) -> list[events.Event]:
        self._stops += 1
        if self._stops > 1:
            log.warning("leaving at once", why=item.why)
            if self._stops == 2 and self._leave_at is None:
                return [events.Leave()]
            self._leave_at = time.monotonic()
            return []
        grace_s = self._settings.service.grace_s
        log.info("draining", why=item.why, grace_s=grace_s)
        self._status.drain()
        self._notifier.stopping(self._status.line)
        return [events.Drain(grace_s)]

    def _healthy(self) -> bool:
        """What the watchdog is fed by; the core is alive where this is asked."""
        return self._connection.alive and all(engine.alive for engine in self._engines.values())

    @contextmanager
    def _signals_to_inbox(self) -> Iterator[None]:
        def on_signal(number: int, _frame: FrameType | None) -> None:
            self.stop(signal.Signals(number).name)  # SimpleQueue.put is reentrant

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @staticmethod
    def _now() -> events.Now:
        return events.Now(time.monotonic(), time.time())


_LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def run(settings: Settings) -> int:
    """Serve until a signal ends it; returns the exit code.

    Raises:
        ConfigError, ModelNotFound, TlsError: the node cannot be started as it is configured.
    """
    keep_less_than(_LARGE)
    return Daemon(settings).run()
