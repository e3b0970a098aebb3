"""Daemons that write down too little, or too late."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from edged.core.acks import Acks
from edged.core.brain import Core
from edged.core.courier import Courier
from edged.core.delivery import Delivery
from edged.core.events import Effect, Now, Synced
from edged.core.outlet import Outlet
from edged.core.records import Delivered, NewRequest, Restored, Row, Said
from edged.core.recovery import Recovery
from edged.journal.scribe import Scribe
from tests.simulation.broken.registry import Patch, around, broken
from tests.simulation.disk import Disk

# --- written, then published, then acknowledged ---


@broken("a message is published before it is written")
def _(patch: Patch) -> None:
    def say(original: Any, self: Courier, delivery: Delivery, *args: Any) -> None:
        original(self, delivery, *args)
        delivery.written = delivery.said
        self._pump(delivery)

    around(patch, Courier, "say", say)


@broken("a request is acknowledged before it is safe")
def _(patch: Patch) -> None:
    def add(original: Any, self: Acks, ack: object, *, after: int | None) -> None:  # noqa: ARG001
        original(self, ack, after=None)

    around(patch, Acks, "add", add)


@broken("a request is said to be accepted before it is safe")
def _(patch: Patch) -> None:
    def accept(original: Any, self: Courier, delivery: Delivery, request: NewRequest) -> None:
        original(self, delivery, request)
        delivery.accepted = True

    around(patch, Courier, "accept", accept)


@broken("one sync is taken for all that was written since")
def _(patch: Patch) -> None:
    def synced(original: Any, self: Courier, event: Synced, now: Now) -> list[Delivery]:
        return original(self, replace(event, number=event.number + 1), now)  # type: ignore[no-any-return]

    around(patch, Courier, "synced", synced)


@broken("acknowledgements overtake each other")
def _(patch: Patch) -> None:
    def ready(self: Acks) -> Iterator[object]:
        yield from [pending.ack for pending in self._pending if pending.after is None]
        self._pending = deque(pending for pending in self._pending if pending.after is not None)

    patch.setattr(Acks, "ready", ready)


@broken("a failed sync is taken for a good one")
def _(patch: Patch) -> None:
    def synced(original: Any, self: Courier, event: Synced, now: Now) -> list[Delivery]:
        return original(self, Synced(event.number), now)  # type: ignore[no-any-return]

    around(patch, Courier, "synced", synced)


@broken("a refusal lets go of acknowledgements that wait for others")
def _(patch: Patch) -> None:
    def given_up(self: Outlet, number: int, *, instead: int | None) -> None:  # noqa: ARG001
        self.safe(number)

    patch.setattr(Outlet, "given_up", given_up)


@broken("what is to be written is written before what may leave already has left")
def _(patch: Patch) -> None:
    def effects(self: Core, now: Now) -> list[Effect]:
        courier = self._parts.courier
        return [*courier.record(now), *courier.take(), *self._parts.out.take()]

    patch.setattr(Core, "_effects", effects)


@broken("a request that was not accepted is answered from the journal")
def _(patch: Patch) -> None:
    patch.setattr(Courier, "past", lambda self, key: self._history.find(key))


# --- the journal ---


@broken("some messages are not written")
def _(patch: Patch) -> None:
    def write(original: Any, self: Scribe, rows: Sequence[Row]) -> None:
        original(self, [row for row in rows if not (isinstance(row, Said) and row.seq % 4 == 3)])

    around(patch, Scribe, "write", write)


@broken("messages are written without their tokens")
def _(patch: Patch) -> None:
    def say(original: Any, self: Delivery, message: Any, text: str, tokens: tuple[int, ...]) -> Said:  # noqa: ARG001
        return original(self, message, text, ())  # type: ignore[no-any-return]

    around(patch, Delivery, "say", say)


@broken("messages are written without their text")
def _(patch: Patch) -> None:
    def say(original: Any, self: Delivery, message: Any, text: str, tokens: tuple[int, ...]) -> Said:  # noqa: ARG001
        return original(self, message, "", tokens)  # type: ignore[no-any-return]

    around(patch, Delivery, "say", say)


@broken("rows that could not be written are dropped")
def _(patch: Patch) -> None:
    def not_written(original: Any, self: Courier, rows: Iterable[Row], error: str, now: Now) -> list[Delivery]:
        return original(self, [row for row in rows if isinstance(row, NewRequest)], error, now)  # type: ignore[no-any-return]

    around(patch, Courier, "_not_written", not_written)


@broken("that a request has ended is not written")
def _(patch: Patch) -> None:
    def end(self: Courier, delivery: Delivery, now: Now) -> None:  # noqa: ARG001
        delivery.over = True

    patch.setattr(Courier, "end", end)


@broken("that a reply was delivered is not written")
def _(patch: Patch) -> None:
    def write(original: Any, self: Scribe, rows: Sequence[Row]) -> None:
        original(self, [row for row in rows if not isinstance(row, Delivered)])

    around(patch, Scribe, "write", write)


@broken("the broker is thought to have one message more than it has")
def _(patch: Patch) -> None:
    def say(original: Any, self: Delivery, *args: Any) -> Said:
        said: Said = original(self, *args)
        return replace(said, confirmed=min(said.seq, said.confirmed + 1))

    around(patch, Delivery, "say", say)


@broken("what is written is lost with the process")
def _(patch: Patch) -> None:
    def die(original: Any, self: Disk) -> None:
        original(self)
        self.lose_writes()

    around(patch, Disk, "die", die)


@broken("the numbers of requests begin again")
def _(patch: Patch) -> None:
    def restore(original: Any, self: Recovery, restored: Restored, now: Now) -> None:
        original(self, replace(restored, last_uid=0), now)

    around(patch, Recovery, "restore", restore)
