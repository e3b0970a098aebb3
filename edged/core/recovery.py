"""Requests of an earlier daemon, made into streams again."""

from __future__ import annotations

from dataclasses import dataclass

from edged.core.delivery import Delivery
from edged.core.ends import Ends
from edged.core.events import MessageArrived, Now, Properties
from edged.core.intake import Refusal
from edged.core.parts import Parts
from edged.core.records import NewRequest, Restored, Unfinished
from edged.core.stream import Ending, Stream
from edged.wire.messages import Error
from edged.wire.request import Request


@dataclass(frozen=True, slots=True)
class Revived:
    """A request that is here again.

    Attributes:
        stream: what it is now.
        ending: it can only be ended: with this.
        goes_on: it was running, and is to go on before anything new begins.
        again: it begins from the start, in a new generation, because messages may have been lost.
    """

    stream: Stream
    ending: Ending | None
    goes_on: bool
    again: bool


class Recovery:
    """Brings requests back as they were."""

    def __init__(self, parts: Parts, ends: Ends) -> None:
        self._parts = parts
        self._ends = ends

    def restore(self, restored: Restored, now: Now) -> None:
        """Take over what an earlier daemon left behind; once, before the first event."""
        self._parts.uid = restored.last_uid
        for before in restored.unfinished:
            revived = self._revive(before, restored, now)
            stream = revived.stream
            self._parts.add(stream)
            if revived.again:
                self._parts.courier.accept_again(stream.delivery, stream.standing(begun=False))
            else:
                self._parts.courier.add(stream.delivery)
            if revived.ending is not None:
                self._ends.finish(stream, revived.ending, None, now)
            elif revived.goes_on:
                self._parts.fleet[stream.model].survivors.add(stream)
            else:
                self._parts.queue.add(stream)
            if revived.ending is None:
                self._parts.fleet[stream.model].be_patient(now)
                if not stream.delivery.said:
                    self._parts.say_accepted(stream, now)
        for past in restored.undelivered:
            properties = Properties(expiry_s=self._parts.settings.keep_s, correlation=past.correlation)
            delivery = Delivery.of(past, properties, topic=past.topic, first=past.confirmed, is_copy=False)
            self._parts.courier.add(delivery)
        if restored.unfinished or restored.undelivered:
            again = 0 if restored.intact else len(restored.unfinished)
            figures = {"requests": len(restored.unfinished), "from_the_start": again}
            self._parts.out.log("info", "recovered", **figures, undelivered=len(restored.undelivered))

    def _revive(self, before: Unfinished, restored: Restored, now: Now) -> Revived:
        """Make a stream of what is known of a request."""
        request = before.request
        stream, ending = self._stream(request, _shifted(request, now, same_boot=restored.same_boot))
        stream.delivery.gen = before.standing.gen
        if not restored.intact:
            stream.delivery.gen += 1
            return Revived(stream, ending or stream.run_again(before.standing), goes_on=False, again=True)
        stream.delivery.accepted = True
        stream.recall(before, now)
        if before.standing.begun_with is not None and ending is None:
            ending = stream.outlive(outside=True)
        return Revived(stream, ending, goes_on=stream.goes_on and ending is None, again=False)

    def _stream(self, request: NewRequest, times: tuple[Now, float]) -> tuple[Stream, Ending | None]:
        arrived, deadline = times
        event = MessageArrived(
            request.came_in,
            request.payload,
            response_topic=request.response_topic,
            correlation=request.correlation,
        )
        ending = None
        try:
            order = self._parts.intake.order(event, made_id=request.key.id, seed=request.seed)
        except Refusal as why:  # the settings are others now
            ending = Ending("error", Error.of(why.code, why.message))
            order = self._parts.intake.stand_in(request.key, request.topic, Request(prompt="-"), seed=request.seed)
        properties = Properties(expiry_s=self._parts.settings.keep_s, correlation=request.correlation)
        stream = Stream(
            uid=request.uid,
            key=request.key,
            request=order.request,
            model=order.model,
            sampling=order.sampling,
            digest=request.digest,
            delivery=Delivery(request.uid, request.key, request.topic, properties),
            arrived=arrived,
            deadline=deadline,
            only_final=order.only_final,
            shared=order.shared,
        )
        return stream, ending


def _shifted(request: NewRequest, now: Now, *, same_boot: bool) -> tuple[Now, float]:
    """When it arrived and when its deadline is, on the monotonic clock of today.

    After a boot only the wall clock says how long ago something was. One that stands behind makes nothing younger than
    just arrived.
    """
    if same_boot:
        return request.arrived, request.deadline.mono
    age = max(0.0, now.wall - request.arrived.wall)
    arrived = now.mono - age
    return Now(arrived, request.arrived.wall), arrived + request.deadline.wall - request.arrived.wall
