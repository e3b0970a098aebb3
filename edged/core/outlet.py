"""What the core says beside the streams: refusals, events, log lines and acknowledgements, collected as effects."""

from __future__ import annotations

from typing import Literal

from edged.core.acks import Acks
from edged.core.events import Acknowledge, Effect, Log, Now, Properties, Publish
from edged.core.intake import Refusal
from edged.core.meter import Meter
from edged.core.settings import CoreSettings
from edged.core.stream import refusal
from edged.wire.errors import ErrorCode
from edged.wire.messages import Error, Event

#: Refusals on their way to the broker. Beyond that, QoS 1 requests are not acknowledged, so that the broker holds
#: back (Receive Maximum), and QoS 0 requests that are refused go unanswered.
_MAX_REFUSALS = 256
#: Longest part of a foreign topic that is repeated in an event, characters.
_MAX_TOPIC = 512


class _RefusalToken:
    """Marks a published refusal; it has no state."""


class Outlet:
    """Collects the effects of one event after another and keeps count of what the broker has not confirmed."""

    def __init__(self, settings: CoreSettings, meter: Meter) -> None:
        self._settings = settings
        self._meter = meter
        self._effects: list[Effect] = []
        self._refusals = 0
        self._acks = Acks()
        #: Refusals and events that the broker has not confirmed.
        self.unconfirmed = 0

    def take(self) -> list[Effect]:
        """The effects since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def do(self, effect: Effect) -> None:
        """Add an effect as it is."""
        self._effects.append(effect)

    def log(self, level: Literal["debug", "info", "warning", "error"], event: str, **fields: object) -> None:
        """Add a line for operators. No field may hold what users or the model wrote."""
        self.do(Log(level, event, fields))

    def acknowledge(self, ack: object | None, *, after: int | None) -> None:
        """Send a PUBACK, in the order of arrival; while too many refusals are on their way it waits.

        Args:
            ack: None where there is nothing to acknowledge.
            after: the number of the record that has to be safe before; None where none has.
        """
        self._acks.add(ack, after=after)
        self._release()

    def safe(self, number: int) -> None:
        """What waits for records up to this one need not wait for them any more."""
        self._acks.safe(number)
        self._release()

    def given_up(self, number: int, *, instead: int | None) -> None:
        """What waits for this record waits for another one, or for none."""
        self._acks.given_up(number, instead=instead)
        self._release()

    def _release(self) -> None:
        if self._refusals < _MAX_REFUSALS:
            for ack in self._acks.ready():
                self.do(Acknowledge(ack))

    def refuse(self, why: Refusal, properties: Properties, now: Now, *, came_in: str, qos: int) -> None:
        """Answer what is not executed, in generation 0, and on `events` where the answer may find no reader."""
        self._meter.refused[why.code] += 1
        self.log("info", "refused", id=why.id, code=str(why.code), topic=came_in[:_MAX_TOPIC])
        if qos == 0 and self._refusals >= _MAX_REFUSALS:
            self._meter.unanswered += 1
            return
        error = Error.of(why.code, why.message, retry_after_ms=why.retry_after_ms)
        if why.topic is not None:
            message = refusal(error, id=why.id, node=self._settings.topics.node, now=now)
            self._refusal(why.topic, message.payload(), properties)
        if why.public:
            self._refusal(self._settings.topics.events, self._event("refused", error, came_in, why.id, now), properties)

    def ignored(self, topic: str, now: Now) -> None:
        """Tell on `events` that a retained message was passed over."""
        self._meter.ignored_retained += 1
        self.log("warning", "retained message ignored", topic=topic[:_MAX_TOPIC])
        if self._refusals >= _MAX_REFUSALS:
            return
        message = "a retained message is no request, because a broker would repeat it for ever: publish without retain"
        error = Error.of(ErrorCode.BAD_REQUEST, message)
        expiry = Properties(expiry_s=self._settings.keep_s)
        self._refusal(self._settings.topics.events, self._event("ignored", error, topic, None, now), expiry)

    def confirmed(self, token: object) -> bool:
        """Take note of a PUBACK; whether it was for a refusal or an event."""
        if not isinstance(token, _RefusalToken):
            return False
        self.unconfirmed -= 1
        self._refusals -= 1
        self._release()
        return True

    def forget_acks(self) -> None:
        """The connection that they belonged to is gone."""
        self._acks.clear()

    def _event(self, kind: Literal["refused", "ignored"], error: Error, topic: str, id_: str | None, now: Now) -> bytes:
        node = self._settings.topics.node
        return Event(
            type=kind, ts=round(now.wall, 3), node=node, topic=topic[:_MAX_TOPIC], id=id_, error=error
        ).payload()

    def _refusal(self, topic: str, payload: bytes, properties: Properties) -> None:
        self._refusals += 1
        self.unconfirmed += 1
        self.do(Publish(topic, payload, properties=properties, token=_RefusalToken()))
