"""What the core says: messages of streams, refusals, events and acknowledgements, collected as effects."""

from __future__ import annotations

from collections import deque
from typing import Literal

from edged.core.events import Acknowledge, Effect, Log, Now, Properties, Publish
from edged.core.intake import Refusal
from edged.core.meter import Meter
from edged.core.settings import CoreSettings
from edged.core.stream import Stream, refusal
from edged.wire.errors import ErrorCode
from edged.wire.messages import Error, Event, Reply

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
        self._held: deque[object] = deque()
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

    def say(self, stream: Stream, message: Reply | None) -> None:
        """Publish a message of a stream; None is nothing to say."""
        if message is None:
            return
        stream.unconfirmed += 1
        self._publish(stream.topic, message.payload(), stream.properties, stream)

    def acknowledge(self, ack: object | None) -> None:
        """Send a PUBACK, in the order of arrival; while too many refusals are on their way it waits."""
        if ack is None:
            return
        if self._held or self._refusals >= _MAX_REFUSALS:
            self._held.append(ack)
        else:
            self.do(Acknowledge(ack))

    def refuse(
        self, why: Refusal, properties: Properties, now: Now, *, came_in: str, qos: int, retry_after_ms: int | None
    ) -> None:
        """Answer what is not executed, in generation 0, and on `events` where the answer may find no reader."""
        self._meter.refused[why.code] += 1
        self.log("info", "refused", id=why.id, code=str(why.code), topic=came_in[:_MAX_TOPIC])
        if qos == 0 and self._refusals >= _MAX_REFUSALS:
            self._meter.unanswered += 1
            return
        error = Error.of(why.code, why.message, retry_after_ms=retry_after_ms)
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

    def confirmed(self, token: object) -> Stream | None:
        """Take note of a PUBACK; returns the stream it belongs to, if it does."""
        self.unconfirmed -= 1
        if isinstance(token, Stream):
            token.unconfirmed -= 1
            return token
        if isinstance(token, _RefusalToken):
            self._refusals -= 1
            while self._held and self._refusals < _MAX_REFUSALS:
                self.do(Acknowledge(self._held.popleft()))
        return None

    def forget_acks(self) -> None:
        """The connection that they belonged to is gone."""
        self._held.clear()

    def _event(self, kind: Literal["refused", "ignored"], error: Error, topic: str, id_: str | None, now: Now) -> bytes:
        node = self._settings.topics.node
        return Event(
            type=kind, ts=round(now.wall, 3), node=node, topic=topic[:_MAX_TOPIC], id=id_, error=error
        ).payload()

    def _refusal(self, topic: str, payload: bytes, properties: Properties) -> None:
        self._refusals += 1
        self._publish(topic, payload, properties, _RefusalToken())

    def _publish(self, topic: str, payload: bytes, properties: Properties, token: object) -> None:
        self.unconfirmed += 1
        self.do(Publish(topic, payload, properties=properties, token=token))
