"""The daemon: wires the rooms together, and owns the life cycle and the signals.

The main thread is the core's: `for event in inbox: for effect in core.handle(event, now): perform(effect)`. The
connection and every engine have a thread of their own, which only ever put something into the inbox.
"""

from __future__ import annotations

import logging
import queue
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import structlog

from edged import __version__, wiring
from edged.config import Settings
from edged.core import events
from edged.core.brain import Core
from edged.engine import protocol
from edged.engine.files import resolve
from edged.engine.process import EngineProcess, Lost
from edged.mqtt.connection import Connection
from edged.mqtt.happenings import Arrived, Confirmed, Ended, Happening, Ready, Refused
from edged.observe.notify import Notifier, watchdog_interval_s
from edged.wire.messages import ModelCard
from edged.wire.topics import Kind

#: How long the last messages may take to reach the broker when the daemon stops, seconds.
_FAREWELL_S = 5.0
#: Messages that came in and wait for the core: so many bytes, a message counted with so much besides its payload.
_INBOX_BYTES, _MESSAGE_BYTES = 4 * 1024 * 1024, 1024
#: How long the connection's thread rests while they are more, seconds.
_FLOOD_PAUSE_S = 0.001

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _FromEngine:
    """A report of one model's child process, with the number of the child."""

    model: str
    child: int
    report: protocol.Report | Lost


@dataclass(frozen=True, slots=True)
class _Stop:
    """The daemon is asked to end."""

    why: str


Item = Happening | _FromEngine | _Stop
StartEngine = Callable[[protocol.Load, Callable[[int, protocol.Report | Lost], None]], EngineProcess]


class Daemon:
    """One node: a broker connection, a core, and an engine for each model.

    Args:
        settings: all of them, checked.
        start_engine: makes the handle of an engine; tests put a scripted worker here.

    Raises:
        ConfigError: a password or the state directory cannot be used.
        ModelNotFound: a model file is missing.
        TlsError: a certificate cannot be used.
    """

    def __init__(self, settings: Settings, *, start_engine: StartEngine = EngineProcess) -> None:
        self._settings = settings
        self._inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._notifier = Notifier()
        self._children: dict[str, int] = {}
        self._stops = 0
        self._posted_bytes = 0  # the connection's thread alone writes it
        self._handled_bytes = 0  # the main thread alone writes it
        self._left = False
        self._leave_at: float | None = None
        files = {model.alias: resolve(model.path) for model in settings.models}
        self._files = files
        self._core = Core(
            wiring.core_settings(settings, wiring.boot_number(settings)), self._now(), random.SystemRandom()
        )
        topics = settings.topics
        self._connection = Connection(
            wiring.broker_settings(settings),
            will=self._core.will(self._now()),
            subscriptions=[topics.filter(kind) for kind in (Kind.CTL, Kind.REQ, Kind.ASK, Kind.SESSION)],
            post=self._post,
        )
        self._engines = {
            model.alias: start_engine(
                protocol.Load(
                    path=str(files[model.alias]),
                    context=model.context,
                    parallel=model.parallel,
                    threads=model.threads,
                    gpu_layers=model.gpu_layers,
                    itl_target_ms=settings.engine.itl_target_ms,
                ),
                self._poster(model.alias),
            )
            for model in settings.models
        }

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; a second one leaves at once. Returns the exit code."""
        with self._signals_to_inbox():
            self.serve()
        return 0

    def serve(self) -> None:
        """Serve until `stop`."""
        topics = self._settings.topics
        log.info("starting", version=__version__, node=topics.node, broker=self._settings.mqtt.host, topics=topics.base)
        try:
            self._connection.start()
            for engine in self._engines.values():
                engine.start()
            self._notifier.ready("loading")
            self._loop()
        finally:
            # The order of the end: the broker has heard `offline` by now, from the core. The engines go first, they
            # hold the memory; then a DISCONNECT, so that the broker does not publish the will.
            self._left = True
            for engine in self._engines.values():
                engine.stop()
            self._connection.stop(_FAREWELL_S)
        log.info("stopped")

    def stop(self, why: str = "stop") -> None:
        """End as at a signal: drain, and at once when asked again. For any thread."""
        self._inbox.put(_Stop(why))

    def _loop(self) -> None:
        interval = watchdog_interval_s()
        fed = time.monotonic()
        while self._leave_at is None or (self._connection.backlog and time.monotonic() < self._leave_at):
            for event in self._next(fed + interval if interval else None):
                self._handle(event)
            if interval and time.monotonic() >= fed + interval and self._healthy():
                fed = time.monotonic()
                self._notifier.watchdog()

    def _next(self, feed_at: float | None) -> list[events.Event]:
        """Wait for what comes next, at the longest until the core or the watchdog wants to act."""
        wake = [at for at in (self._core.wake_at(), feed_at, self._leave_at) if at is not None]
        timeout = max(0.0, min(wake) - time.monotonic()) if wake else None
        try:
            item = self._inbox.get(timeout=timeout)
        except queue.Empty:
            return [events.Tick()]
        return self._events(item)

    def _handle(self, event: events.Event) -> None:
        try:
            effects = self._core.handle(event, self._now())
        except Exception:
            # A defect of ours must not become a defect of the node: nothing that is published ends the daemon.
            log.exception("internal error", event_type=type(event).__name__)
            return
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: events.Effect) -> None:
        match effect:
            case events.Publish():
                self._connection.publish(effect)
            case events.Acknowledge():
                self._connection.acknowledge(effect.ack)
            case events.Generate():
                self._engines[effect.model].send(self._children[effect.model], wiring.generate(effect))
            case events.Cancel():
                self._engines[effect.model].send(self._children[effect.model], protocol.Cancel(effect.uid))
            case events.Log():
                log.log(_LEVELS[effect.level], effect.event, **effect.fields)
            case events.Stop():
                # Without a connection nothing more gets out, and there is nobody to wait for.
                self._leave_at = time.monotonic() + (_FAREWELL_S if self._connection.connected else 0.0)

    def _events(self, item: Item) -> list[events.Event]:
        match item:
            case Ready() | Arrived() | Confirmed() | Refused() | Ended():
                if isinstance(item, Arrived):
                    self._handled_bytes += len(item.message.payload) + _MESSAGE_BYTES
                happened = self._connection.handle(item)
                for event in happened:
                    self._tell(event)
                return happened
            case _FromEngine():
                return self._from_engine(item)
            case _Stop():
                return self._on_stop(item)

    def _tell(self, event: events.Event) -> None:
        if isinstance(event, events.BrokerConnected):
            log.info("connected to broker", host=self._settings.mqtt.host, port=self._settings.mqtt.port)
        elif isinstance(event, events.BrokerDisconnected):
            log.warning("not connected to broker", reason=event.reason)

    def _from_engine(self, item: _FromEngine) -> list[events.Event]:
        model, report = item.model, item.report
        match report:
            case protocol.Step():
                return [wiring.step(model, report)]
            case protocol.Loading():
                return [events.EngineLoading(model, report.fraction)]
            case protocol.Ready():
                self._children[model] = item.child
                self._notifier.status(f"{model} is ready")
                return [events.EngineReady(model, self._card(model, report))]
            case protocol.Note():
                log.log(_LEVELS[report.level], "llama.cpp", model=model, text=report.text)
            case Lost():
                self._notifier.status(f"{model}: {report.reason}")
                return [events.EngineLost(model, f"{report.reason}; next start in {report.retry_in_s:.1f} s")]
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

    def _on_stop(self, item: _Stop) -> list[events.Event]:
        self._stops += 1
        if self._stops > 1:
            log.warning("leaving at once", why=item.why)
            self._leave_at = time.monotonic()
            return []
        grace_s = self._settings.service.grace_s
        log.info("draining", why=item.why, grace_s=grace_s)
        self._notifier.stopping()
        return [events.Drain(grace_s)]

    def _healthy(self) -> bool:
        """What the watchdog is fed by; the core is alive where this is asked."""
        return self._connection.alive and all(engine.alive for engine in self._engines.values())

    def _post(self, happening: Happening) -> None:
        """From the connection's thread. A flood waits here, and so in the broker, instead of in our memory."""
        if isinstance(happening, Arrived):
            while self._posted_bytes - self._handled_bytes > _INBOX_BYTES and not self._left:
                time.sleep(_FLOOD_PAUSE_S)
            self._posted_bytes += len(happening.message.payload) + _MESSAGE_BYTES
        self._inbox.put(happening)

    def _poster(self, model: str) -> Callable[[int, protocol.Report | Lost], None]:
        return lambda child, report: self._inbox.put(_FromEngine(model, child, report))

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
    return Daemon(settings).run()
