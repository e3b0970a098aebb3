"""Daemons that are broken on purpose, each in one way: a simulation that lets one of them pass has no teeth."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from edged.core import courier, recovery
from edged.core.acks import Acks
from edged.core.brain import Core
from edged.core.courier import Courier
from edged.core.delivery import Delivery
from edged.core.ends import Ends
from edged.core.events import Effect, Generate, MessageArrived, Now, Published, Synced
from edged.core.fleet import Engine
from edged.core.holds import Holds
from edged.core.intake import Intake
from edged.core.outlet import Outlet
from edged.core.queue import WaitingQueue
from edged.core.receipts import Receipts
from edged.core.reception import Reception
from edged.core.records import Delivered, NewRequest, Past, Restored, Row, Said, Standing, Unfinished
from edged.core.recovery import Recovery
from edged.core.stream import Ending, Stream
from edged.journal import Journal
from edged.journal.scribe import Scribe
from edged.mqtt.outbox import Outbox
from tests.simulation.disk import Disk

Patch = pytest.MonkeyPatch
BROKEN: dict[str, Callable[[Patch], None]] = {}


def _broken(name: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def add(change: Callable[[Patch], None]) -> Callable[[Patch], None]:
        BROKEN[name] = change
        return change

    return add


def _around(patch: Patch, owner: type, name: str, change: Callable[..., Any]) -> None:
    """Replace a method with `change(original, self, …)`."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda self, *args, **named: change(original, self, *args, **named))


# --- written, then published, then acknowledged ---


@_broken("a message is published before it is written")
def _(patch: Patch) -> None:
    def say(original: Any, self: Courier, delivery: Delivery, *args: Any) -> None:
        original(self, delivery, *args)
        delivery.written = delivery.said
        self._pump(delivery)

    _around(patch, Courier, "say", say)


@_broken("a request is acknowledged before it is safe")
def _(patch: Patch) -> None:
    def add(original: Any, self: Acks, ack: object, *, after: int | None) -> None:  # noqa: ARG001
        original(self, ack, after=None)

    _around(patch, Acks, "add", add)


@_broken("a request is said to be accepted before it is safe")
def _(patch: Patch) -> None:
    def accept(original: Any, self: Courier, delivery: Delivery, request: NewRequest) -> None:
        original(self, delivery, request)
        delivery.accepted = True

    _around(patch, Courier, "accept", accept)


@_broken("one sync is taken for all that was written since")
def _(patch: Patch) -> None:
    def synced(original: Any, self: Courier, event: Synced, now: Now) -> list[Delivery]:
        return original(self, replace(event, number=event.number + 1), now)  # type: ignore[no-any-return]

    _around(patch, Courier, "synced", synced)


@_broken("acknowledgements overtake each other")
def _(patch: Patch) -> None:
    def ready(self: Acks) -> Iterator[object]:
        yield from [pending.ack for pending in self._pending if pending.after is None]
        self._pending = deque(pending for pending in self._pending if pending.after is not None)

    patch.setattr(Acks, "ready", ready)


@_broken("a failed sync is taken for a good one")
def _(patch: Patch) -> None:
    def synced(original: Any, self: Courier, event: Synced, now: Now) -> list[Delivery]:
        return original(self, Synced(event.number), now)  # type: ignore[no-any-return]

    _around(patch, Courier, "synced", synced)


@_broken("a refusal lets go of acknowledgements that wait for others")
def _(patch: Patch) -> None:
    def given_up(self: Outlet, number: int, *, instead: int | None) -> None:  # noqa: ARG001
        self.safe(number)

    patch.setattr(Outlet, "given_up", given_up)


@_broken("what is to be written is written before what may leave already has left")
def _(patch: Patch) -> None:
    def effects(self: Core, now: Now) -> list[Effect]:
        courier = self._parts.courier
        return [*courier.record(now), *courier.take(), *self._parts.out.take()]

    patch.setattr(Core, "_effects", effects)


@_broken("a request that was not accepted is answered from the journal")
def _(patch: Patch) -> None:
    patch.setattr(Courier, "past", lambda self, key: self._history.find(key))


# --- the journal ---


@_broken("some messages are not written")
def _(patch: Patch) -> None:
    def write(original: Any, self: Scribe, rows: Sequence[Row]) -> None:
        original(self, [row for row in rows if not (isinstance(row, Said) and row.seq % 4 == 3)])

    _around(patch, Scribe, "write", write)


@_broken("messages are written without their tokens")
def _(patch: Patch) -> None:
    def say(original: Any, self: Delivery, message: Any, text: str, tokens: tuple[int, ...]) -> Said:  # noqa: ARG001
        return original(self, message, text, ())  # type: ignore[no-any-return]

    _around(patch, Delivery, "say", say)


@_broken("messages are written without their text")
def _(patch: Patch) -> None:
    def say(original: Any, self: Delivery, message: Any, text: str, tokens: tuple[int, ...]) -> Said:  # noqa: ARG001
        return original(self, message, "", tokens)  # type: ignore[no-any-return]

    _around(patch, Delivery, "say", say)


@_broken("rows that could not be written are dropped")
def _(patch: Patch) -> None:
    def not_written(original: Any, self: Courier, rows: Iterable[Row], error: str, now: Now) -> list[Delivery]:
        return original(self, [row for row in rows if isinstance(row, NewRequest)], error, now)  # type: ignore[no-any-return]

    _around(patch, Courier, "_not_written", not_written)


@_broken("that a request has ended is not written")
def _(patch: Patch) -> None:
    def end(self: Courier, delivery: Delivery, now: Now) -> None:  # noqa: ARG001
        delivery.over = True

    patch.setattr(Courier, "end", end)


@_broken("that a reply was delivered is not written")
def _(patch: Patch) -> None:
    def write(original: Any, self: Scribe, rows: Sequence[Row]) -> None:
        original(self, [row for row in rows if not isinstance(row, Delivered)])

    _around(patch, Scribe, "write", write)


@_broken("the broker is thought to have one message more than it has")
def _(patch: Patch) -> None:
    def say(original: Any, self: Delivery, *args: Any) -> Said:
        said: Said = original(self, *args)
        return replace(said, confirmed=min(said.seq, said.confirmed + 1))

    _around(patch, Delivery, "say", say)


@_broken("what is written is lost with the process")
def _(patch: Patch) -> None:
    def die(original: Any, self: Disk) -> None:
        original(self)
        self.lose_writes()

    _around(patch, Disk, "die", die)


@_broken("the numbers of requests begin again")
def _(patch: Patch) -> None:
    def restore(original: Any, self: Recovery, restored: Restored, now: Now) -> None:
        original(self, replace(restored, last_uid=0), now)

    _around(patch, Recovery, "restore", restore)


# --- a new beginning ---


@_broken("a generation goes on after a power cut")
def _(patch: Patch) -> None:
    patch.setattr(Disk, "distrusts", False)


@_broken("a new generation is published before it is safe")
def _(patch: Patch) -> None:
    def accept_again(original: Any, self: Courier, delivery: Delivery, standing: Standing) -> None:
        original(self, delivery, standing)
        delivery.accepted = True

    _around(patch, Courier, "accept_again", accept_again)


def _recall(patch: Patch, change: Callable[[Stream], None]) -> None:
    def recall(original: Any, self: Stream, before: Unfinished, now: Now) -> None:
        original(self, before, now)
        change(self)

    _around(patch, Stream, "recall", recall)


@_broken("the next message after a restart has the number of the last one")
def _(patch: Patch) -> None:
    def change(stream: Stream) -> None:
        stream.delivery.said = stream.delivery.written = max(0, stream.delivery.said - 1)

    _recall(patch, change)


@_broken("a number is left out after a restart")
def _(patch: Patch) -> None:
    def change(stream: Stream) -> None:
        stream.delivery.said += 1
        stream.delivery.written += 1

    _recall(patch, change)


@_broken("one token too few is there after a restart")
def _(patch: Patch) -> None:
    def change(stream: Stream) -> None:
        del stream.answer.tokens[-1:]

    _recall(patch, change)


@_broken("how often it has failed is forgotten at a restart")
def _(patch: Patch) -> None:
    def fare(original: Any, self: Stream, standing: Standing) -> None:
        original(self, replace(standing, fruitless=0, suspected_at=None))

    _around(patch, Stream, "fare", fare)


@_broken("the deadline is forgotten at a restart")
def _(patch: Patch) -> None:
    original = recovery._shifted
    patch.setattr(
        recovery,
        "_shifted",
        lambda *args, **named: (original(*args, **named)[0], original(*args, **named)[0].mono + 1e6),
    )


@_broken("the seed is another one after a restart")
def _(patch: Patch) -> None:
    def stream(original: Any, self: Any, request: NewRequest, times: Any) -> Any:
        return original(self, replace(request, seed=request.seed + 1), times)

    _around(patch, Recovery, "_stream", stream)


@_broken("replies that were not delivered are forgotten at a restart")
def _(patch: Patch) -> None:
    def restored(original: Any, self: Recovery, restored: Restored, now: Now) -> None:
        original(self, replace(restored, undelivered=()), now)

    _around(patch, Recovery, "restore", restored)


@_broken("a request that waits is forgotten at a restart")
def _(patch: Patch) -> None:
    def restored(original: Any, self: Recovery, restored: Restored, now: Now) -> None:
        begun = tuple(one for one in restored.unfinished if one.said or one.standing.begun_with is not None)
        original(self, replace(restored, unfinished=begun[:3]), now)

    _around(patch, Recovery, "restore", restored)


@_broken("a death counts against those who only waited")
def _(patch: Patch) -> None:
    def standing(original: Any, self: Stream, *, begun: bool = True) -> Standing:  # noqa: ARG001
        return original(self)  # type: ignore[no-any-return]

    _around(patch, Stream, "standing", standing)


# --- engines ---


def _generated(patch: Patch, change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> None:
    def begin(original: Any, self: Stream, now: Now) -> Generate:
        order: Generate = original(self, now)
        return replace(order, generated=change(order.generated))

    _around(patch, Stream, "begin", begin)


@_broken("an engine goes on one token too early")
def _(patch: Patch) -> None:
    _generated(patch, lambda tokens: tokens[:-1])


@_broken("an engine goes on one token too late")
def _(patch: Patch) -> None:
    _generated(patch, lambda tokens: (*tokens, tokens[-1]) if tokens else tokens)


@_broken("text that waits dies with the engine")
def _(patch: Patch) -> None:
    def outlive(original: Any, self: Stream, *, outside: bool) -> Ending | None:
        self.answer._waiting.clear()
        return original(self, outside=outside)  # type: ignore[no-any-return]

    _around(patch, Stream, "outlive", outlive)


@_broken("nobody waits for a model that cannot be loaded at once")
def _(patch: Patch) -> None:
    patch.setattr(Engine, "given_up", property(lambda self: self.failure))


@_broken("text that waits is not said at the end")
def _(patch: Patch) -> None:
    def finish(original: Any, self: Ends, stream: Stream, *args: Any) -> None:
        stream.answer._waiting.clear()
        original(self, stream, *args)

    _around(patch, Ends, "finish", finish)


@_broken("a pause never ends by itself")
def _(patch: Patch) -> None:
    patch.setattr(Holds, "on_time", lambda self, now: [])  # noqa: ARG005
    patch.setattr(Holds, "next", None)


@_broken("a cancel is forgotten where the request waits")
def _(patch: Patch) -> None:
    def cancel(original: Any, self: Ends, stream: Stream, ending: Ending, now: Now) -> None:
        if stream.started is not None and not stream.resumed:
            original(self, stream, ending, now)

    _around(patch, Ends, "cancel", cancel)


@_broken("requests are taken in without bound where a place is free and nobody gets it")
def _(patch: Patch) -> None:
    patch.setattr(WaitingQueue, "waits", lambda self, model: False)  # noqa: ARG005


# --- the broker ---


@_broken("messages are sent while there is no connection")
def _(patch: Patch) -> None:
    def closed(original: Any, self: Outbox) -> None:
        window = self._window
        original(self)
        self._window = window

    _around(patch, Outbox, "closed", closed)


@_broken("what was under way when the connection ended is forgotten")
def _(patch: Patch) -> None:
    def closed(self: Outbox) -> None:
        self._window = 0
        self._under_way.clear()

    patch.setattr(Outbox, "closed", closed)


@_broken("what was under way is sent again behind what is new")
def _(patch: Patch) -> None:
    def closed(self: Outbox) -> None:
        self._window = 0
        self._waiting.update(self._under_way)
        self._under_way.clear()

    patch.setattr(Outbox, "closed", closed)


@_broken("a message that the broker had no room for is not sent again")
def _(patch: Patch) -> None:
    def published(original: Any, self: Receipts, event: Published, now: Now) -> None:
        code = 0 if event.reason_code in courier._PASSING else event.reason_code
        original(self, Published(event.token, code), now)

    _around(patch, Receipts, "published", published)


@_broken("a replay of what runs begins one message too late")
def _(patch: Patch) -> None:
    def again(original: Any, self: Courier, delivery: Delivery, seq: int) -> None:
        original(self, delivery, seq + 1)

    _around(patch, Courier, "again", again)


@_broken("a replay of what has ended begins one message too late")
def _(patch: Patch) -> None:
    def send_again(original: Any, self: Reception, past: Past, first: int, **named: Any) -> None:
        original(self, past, min(first + 1, past.messages - 1), **named)

    _around(patch, Reception, "_send_again", send_again)


# --- the same again ---


@_broken("a request that has ended is run again")
def _(patch: Patch) -> None:
    patch.setattr(Journal, "find", lambda self, key: None)  # noqa: ARG005


@_broken("a request without an id is run again where the broker repeats it")
def _(patch: Patch) -> None:
    patch.setattr(Journal, "redelivered", lambda self, packet_id, digest: None)  # noqa: ARG005


@_broken("another body under the same id is taken for the same request")
def _(patch: Patch) -> None:
    def order(original: Any, self: Any, event: MessageArrived, **named: Any) -> Any:
        return replace(original(self, event, **named), digest=b"same")

    _around(patch, Intake, "order", order)
