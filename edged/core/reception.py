"""What comes in: requests, the same ones again, and control messages."""

from __future__ import annotations

from edged.core.delivery import Delivery
from edged.core.ends import Ends
from edged.core.events import Acknowledge, MessageArrived, Now, Properties
from edged.core.intake import Refusal, digest
from edged.core.parts import Parts
from edged.core.records import NewRequest, Past
from edged.core.stream import Ending, State, Stream
from edged.wire.errors import ErrorCode, TopicError
from edged.wire.request import MAX_SEED, Control
from edged.wire.topics import Kind

#: So many streams are sent again at the same time, to those who ask for it.
_MOST_COPIES = 256


class Reception:
    """Decides what becomes of a message on an input topic."""

    def __init__(self, parts: Parts, ends: Ends) -> None:
        self._parts = parts
        self._ends = ends

    def arrived(self, event: MessageArrived, now: Now) -> None:
        """Take a message in, and see to it that it is acknowledged."""
        after = None
        try:
            kind, _ = self._parts.settings.topics.split(event.topic)
        except TopicError:  # of a subscription that an earlier daemon had, under other settings
            self._parts.out.log("warning", "message on a topic of nobody's ignored", topic=event.topic[:512])
            self._parts.out.acknowledge(event.ack, after=None)
            return
        if event.retain:
            self._parts.out.ignored(event.topic, now)
        else:
            try:
                if kind is Kind.CTL:
                    self._control(event, now)
                elif kind is Kind.SESSION:
                    message = "`session`: conversations are not supported by this version"
                    raise self._parts.intake.misdirected(event, message)
                else:
                    self._request(event, now)
                    after = self._parts.courier.awaited
            except Refusal as why:
                self._refuse(why, event, now)
        if kind is Kind.CTL and event.ack is not None:  # of a connection of their own, on which nothing has to wait
            self._parts.out.do(Acknowledge(event.ack))
        else:
            self._parts.out.acknowledge(event.ack, after=after)

    def _request(self, event: MessageArrived, now: Now) -> None:
        self._parts.uid += 1
        order = self._parts.intake.order(event, made_id=self._made_id(event), seed=self._parts.rng.randrange(MAX_SEED))
        known = self._parts.streams.get(order.key) or self._parts.courier.past(order.key)
        if known is not None and known.digest != order.digest:
            message = f"a request with id {order.key.id!r} and another body is known here: choose another id"
            raise Refusal(ErrorCode.ID_CONFLICT, message, order.key.id, order.topic, public=True)
        if isinstance(known, Stream):
            self._parts.out.log("info", "request repeated while it runs", id=str(order.key))
            self._parts.courier.again(known.delivery, 0)
            return
        if known is not None:
            self._parts.out.log("info", "request repeated after its end", id=str(order.key))
            self._send_again(known, 0, topic=order.topic, properties=self._parts.properties(event))
            return
        self._parts.admission.records = self._parts.courier.failure is None
        self._parts.admission.check(order, now)
        limits = (self._parts.settings.timeout_s, order.request.timeout_s, event.expiry_s)
        timeout_s = min(limit for limit in limits if limit is not None)
        delivery = Delivery(self._parts.uid, order.key, order.topic, self._parts.properties(event))
        stream = Stream(
            uid=self._parts.uid,
            key=order.key,
            request=order.request,
            model=order.model,
            sampling=order.sampling,
            digest=order.digest,
            delivery=delivery,
            arrived=now,
            deadline=now.mono + timeout_s,
            only_final=order.only_final,
            shared=order.shared,
        )
        self._parts.add(stream)
        self._parts.meter.accepted += 1
        self._parts.queue.add(stream)
        self._parts.courier.accept(
            delivery,
            NewRequest(
                uid=stream.uid,
                key=stream.key,
                digest=stream.digest,
                came_in=event.topic,
                payload=event.payload,
                response_topic=event.response_topic,
                correlation=event.correlation,
                packet_id=event.packet_id,
                seed=order.sampling.seed,
                topic=order.topic,
                arrived=now,
                deadline=Now(now.mono + timeout_s, now.wall + timeout_s),
            ),
        )
        self._parts.say_accepted(stream, now)
        if (waiting := self._parts.early.take(stream.key)) is not None:
            self._control(waiting, now)

    def _made_id(self, event: MessageArrived) -> str:
        """An id for a request that names none: a new one, unless the broker sends one again that is known."""
        if event.duplicate and event.packet_id is not None:
            known = self._parts.history.redelivered(event.packet_id, digest(event.payload))
            if known is not None:
                return known.id
        return f"{self._parts.settings.boot:x}-{self._parts.uid:x}"

    def _control(self, event: MessageArrived, now: Now, *, late: bool = False) -> None:
        """Do what a control message says; one about a request that is not here waits a little for it, once."""
        key, control = self._parts.intake.control(event)
        known = self._parts.streams.get(key) or self._parts.courier.past(key)
        if isinstance(known, Stream):
            self._operate(known, control, now)
        elif known is None:
            early = self._parts.early
            if late or control.op == "replay" or not early.put(key, event, now, for_good=control.op == "cancel"):
                raise self._parts.intake.unknown(key, f"no request with id {key.id!r} is known here")
        elif control.op == "replay":
            first = control.from_seq or 0
            if control.gen not in (None, known.gen) or first >= known.messages:
                what = f"generation {known.gen} of request {key.id!r}, which ended with seq {known.messages - 1}"
                raise self._parts.intake.unknown(key, f"there is nothing to replay from there: this node has {what}")
            properties = Properties(expiry_s=self._parts.settings.keep_s, correlation=known.correlation)
            self._send_again(known, first, topic=known.topic, properties=properties)

    def _operate(self, stream: Stream, control: Control, now: Now) -> None:
        match control.op:
            case "cancel":
                self._ends.cancel(stream, Ending("cancelled"), now)
            case "replay" if control.gen not in (None, stream.delivery.gen):
                message = f"request {stream.key.id!r} is in generation {stream.delivery.gen} here"
                raise self._parts.intake.unknown(stream.key, f"{message}; of another one there is nothing to replay")
            case "replay":
                self._parts.courier.again(stream.delivery, control.from_seq or 0)
            case "pause" if stream.state is not State.ENDED:
                self._parts.do(self._parts.holds.pause(stream, now))
            case "resume" if stream.state is not State.ENDED:
                self._parts.do(self._parts.holds.resume(stream))
        if stream.state is not State.ENDED:
            self._parts.say(stream, stream.news(now))

    def _send_again(self, past: Past, first: int, *, topic: str, properties: Properties) -> None:
        """Publish the recorded messages of a request that has ended."""
        under_way = self._parts.courier.find(past.uid)
        if under_way is not None and under_way.topic == topic:
            self._parts.courier.again(under_way, first)
        elif under_way is None and self._parts.courier.copies < _MOST_COPIES:
            self._parts.courier.add(Delivery.of(past, properties, topic=topic, first=first, is_copy=True))
        else:
            message = "too many answers are being sent again: ask later"
            raise Refusal(ErrorCode.OVERLOADED, message, past.key.id, topic, retry_after_ms=1000)

    def _refuse(self, why: Refusal, event: MessageArrived, now: Now) -> None:
        self._parts.out.refuse(why, self._parts.properties(event), now, came_in=event.topic, qos=event.qos)

    def on_time(self, now: Now) -> None:
        """Answer the control messages whose request has not come."""
        while (event := self._parts.early.passed(now)) is not None:
            try:
                self._control(event, now, late=True)
            except Refusal as why:
                self._refuse(why, event, now)
