"""What the journal and the broker answer: it is written, it is safe, it has arrived; or it is not."""

from __future__ import annotations

from edged.core.admission import UNRECORDED
from edged.core.delivery import Delivery
from edged.core.ends import Ends
from edged.core.events import Now, Published, Synced, Written
from edged.core.intake import Refusal
from edged.core.parts import Parts
from edged.core.stream import Ending


class Receipts:
    """Takes the answers in."""

    def __init__(self, parts: Parts, ends: Ends) -> None:
        self._parts = parts
        self._ends = ends

    def written(self, event: Written, now: Now) -> bool:
        """Rows are in the journal, or not: what was said in them can be published, what was asked can be refused.

        Returns:
            Whether the journal can be written again, so that what waited for it can go on.
        """
        failed = self._parts.courier.failure
        outcome = self._parts.courier.written(event, now)
        self._tell_journal(failed)
        for uid in outcome.ended:
            stream = self._parts.ending.pop(uid, None)
            if stream is not None and self._parts.streams.get(stream.key) is stream:
                del self._parts.streams[stream.key]
        self._not_accepted(outcome.refused, now)
        if outcome.refused:
            self._parts.out.given_up(event.number, instead=self._parts.courier.awaited)
        return failed is not None and self._parts.courier.failure is None

    def synced(self, event: Synced, now: Now) -> None:
        """Requests are safe, and can be acknowledged; or they are not, and are refused."""
        failed = self._parts.courier.failure
        refused = self._parts.courier.synced(event, now)
        self._tell_journal(failed)
        self._not_accepted(refused, now)
        self._parts.out.safe(event.number)

    def _tell_journal(self, failed: str | None) -> None:
        failure = self._parts.courier.failure
        if failure is not None and failed is None:
            what = "the journal cannot be written: nothing is accepted, answers wait"
            self._parts.out.log("error", what, reason=failure)
        elif failure is None and failed is not None:
            self._parts.out.log("info", "the journal can be written again")

    def _not_accepted(self, deliveries: list[Delivery], now: Now) -> None:
        """Take requests back that could not be recorded, and say so."""
        for delivery in deliveries:
            self._parts.ending.pop(delivery.uid, None)
            stream = self._parts.streams.get(delivery.key)
            if stream is not None and stream.delivery is delivery:
                self._ends.forget(stream)
            code, message, retry_after_ms = UNRECORDED
            why = Refusal(code, message, delivery.key.id, delivery.topic, retry_after_ms=retry_after_ms)
            self._parts.out.refuse(why, delivery.properties, now, came_in=delivery.topic, qos=1)

    def published(self, event: Published, now: Now) -> None:
        """The broker has a message, or has no room for it, or will never take it."""
        refused = event.reason_code >= 0x80
        if self._parts.out.confirmed(event.token):
            if refused:
                self._parts.out.log("warning", "broker refused a message", reason_code=event.reason_code)
            return
        delivery = self._parts.courier.confirmed(event, now)
        if delivery is None:
            return
        what = {"id": str(delivery.key), "topic": delivery.topic}
        self._parts.out.log("warning", "broker takes no answer there: given up", reason_code=event.reason_code, **what)
        stream = self._parts.streams.get(delivery.key)
        self._parts.courier.abandon(delivery)
        if stream is not None and stream.delivery is delivery:
            self._ends.cancel(stream, Ending("cancelled"), now)
