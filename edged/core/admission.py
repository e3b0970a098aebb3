"""Whether there is room for one more request, and when to come back if there is not."""

from __future__ import annotations

from edged.core.events import Now
from edged.core.fleet import Fleet
from edged.core.intake import Order, Refusal
from edged.core.queue import WaitingQueue
from edged.core.settings import CoreSettings
from edged.wire.errors import ErrorCode

#: Weight of the newest request in the running average of service times.
_NEWEST = 0.1
#: What is said to those whose request cannot be recorded: code, message, and when to come back, milliseconds. The
#: reason is in the log, with paths that are nobody else's business.
UNRECORDED = (
    ErrorCode.UNAVAILABLE,
    "this node cannot record requests at the moment, and so accepts none; its log says why",
    5000,
)
#: The least that is recommended to wait, milliseconds.
_LEAST_RETRY_MS = 250


class Admission:
    """Refuses what the node will not take on now.

    Args:
        settings: the node's bounds.
        fleet: the engines.
        queue: who waits for them.
    """

    def __init__(self, settings: CoreSettings, fleet: Fleet, queue: WaitingQueue) -> None:
        self._settings = settings
        self._fleet = fleet
        self._queue = queue
        self._service_s = 1.0
        #: The node is shutting down.
        self.closed = False
        #: Whether requests can be recorded.
        self.records = True

    def served(self, seconds: float) -> None:
        """Note how long a request was with its engine."""
        self._service_s += _NEWEST * (seconds - self._service_s)

    def check(self, order: Order, now: Now) -> None:
        """Let a request pass.

        Raises:
            Refusal: why it cannot be taken on now, and for `overloaded` and a model that cannot be loaded, when it may.
        """
        settings, client = self._settings, order.key.client
        engine = self._fleet[order.model]
        if self.closed:
            raise self._refusal(order, ErrorCode.DRAINING, "this node is shutting down: try again soon", None)
        if not self.records:
            raise self._refusal(order, *UNRECORDED)
        if engine.failure is not None:
            error = engine.failure.error(now)
            raise self._refusal(order, error.code, error.message, error.retry_after_ms)
        if engine.free > 0 and not self._queue.waits(order.model):
            return
        if len(self._queue) >= settings.max_queue:
            message = f"the queue is full: {settings.max_queue} requests are waiting (setting limits.max_queue)"
        elif self._queue.of_client(client) >= settings.max_queue_per_client:
            message = (
                f"{settings.max_queue_per_client} requests of this client are waiting already "
                "(setting limits.max_queue_per_client)"
            )
        else:
            return
        retry_after_ms = max(_LEAST_RETRY_MS, round(self._service_s / self._fleet.places * 1000))
        raise self._refusal(order, ErrorCode.OVERLOADED, message, retry_after_ms)

    @staticmethod
    def _refusal(order: Order, code: ErrorCode, message: str, retry_after_ms: int | None) -> Refusal:
        return Refusal(code, message, order.key.id, order.topic, order.unheard, retry_after_ms)
