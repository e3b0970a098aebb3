"""What the node says of itself: the retained status card, the last will, and the periodic metrics."""

from __future__ import annotations

from typing import NamedTuple

from edged.core.events import Now, Properties, Publish
from edged.core.meter import Meter
from edged.core.settings import CoreSettings
from edged.wire.messages import ModelCard, NodeMetrics, NodeState, Queue, Status

#: The card is published at most so often, seconds; the last change always gets out.
_STATUS_S = 1.0


class Load(NamedTuple):
    """How busy the node is, in requests: those that run, those that wait, and how many may."""

    running: int
    waiting: int
    capacity: int


class Presence:
    """Decides when the card and the metrics are due, and what they say."""

    def __init__(self, settings: CoreSettings, now: Now) -> None:
        self._settings = settings
        self._state: NodeState = "loading"
        self._since = now.wall
        self._started = now.mono
        self._said: tuple[object, ...] = ()
        self._said_at = float("-inf")
        self._metrics_at = now.mono + settings.metrics_s if settings.metrics_s else float("inf")

    def will(self, now: Now) -> Publish:
        """What the broker publishes when the connection is lost."""
        card = Status(
            state="lost",
            node=self._settings.topics.node,
            boot=self._settings.boot,
            version=self._settings.version,
            since=round(now.wall, 3),
        )
        return Publish(self._settings.topics.status, card.payload(), retain=True)

    def status(
        self, state: NodeState, *, cards: list[ModelCard], load: Load, meter: Meter, now: Now, force: bool = False
    ) -> Publish | None:
        """The card, where it has changed and the last one is not too recent, or where it is forced."""
        said = (state, load, tuple(cards))
        if not force and (said == self._said or (state == self._state and now.mono < self._said_at + _STATUS_S)):
            return None
        if state != self._state:
            self._state, self._since = state, now.wall
        self._said, self._said_at = said, now.mono
        settings = self._settings
        card = Status(
            state=state,
            node=settings.topics.node,
            boot=settings.boot,
            version=settings.version,
            models=cards,
            queue=Queue(**load._asdict()),
            tokens_per_second=meter.rate(now),
            limits={
                "max_queue": settings.max_queue,
                "max_queue_per_client": settings.max_queue_per_client,
                "max_payload": settings.max_payload,
                "max_tokens": settings.max_tokens,
                "timeout_s": settings.timeout_s,
            },
            since=round(self._since, 3),
        )
        return Publish(settings.topics.status, card.payload(), retain=True)

    def unsaid(self, state: NodeState, *, cards: list[ModelCard], load: Load) -> float | None:
        """When the card is due because it has changed, in monotonic seconds; None where it has not."""
        return None if (state, load, tuple(cards)) == self._said else self._said_at + _STATUS_S

    @property
    def metrics_at(self) -> float:
        """When the metrics are due, in monotonic seconds."""
        return self._metrics_at

    def metrics(self, meter: Meter, *, load: Load, reconnects: int, outbox: int, now: Now) -> Publish:
        """The figures, and the time of the next ones."""
        self._metrics_at = now.mono + self._settings.metrics_s
        figures = NodeMetrics(
            ts=round(now.wall, 3),
            node=self._settings.topics.node,
            boot=self._settings.boot,
            uptime_s=round(now.mono - self._started, 1),
            running=load.running,
            waiting=load.waiting,
            tokens_per_second=meter.rate(now),
            accepted=meter.accepted,
            finished=dict(meter.finished),
            refused=dict(meter.refused),
            ignored_retained=meter.ignored_retained,
            prompt_tokens=meter.prompt_tokens,
            completion_tokens=meter.completion_tokens,
            engine_restarts=meter.engine_restarts,
            reconnects=reconnects,
            outbox=outbox,
        )
        expiry = Properties(expiry_s=max(1, int(2 * self._settings.metrics_s)))
        return Publish(self._settings.topics.metrics, figures.payload(), qos=0, properties=expiry)
