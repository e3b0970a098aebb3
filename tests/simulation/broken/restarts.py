"""Daemons that begin again otherwise than they ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edged.core import recovery
from edged.core.courier import Courier
from edged.core.delivery import Delivery
from edged.core.events import Now
from edged.core.records import NewRequest, Restored, Standing, Unfinished
from edged.core.recovery import Recovery
from edged.core.stream import Stream
from tests.simulation.broken.registry import Patch, around, broken
from tests.simulation.disk import Disk


@broken("a generation goes on after a power cut")
def _(patch: Patch) -> None:
    patch.setattr(Disk, "distrusts", False)


@broken("a new generation is published before it is safe")
def _(patch: Patch) -> None:
    def accept_again(original: Any, self: Courier, delivery: Delivery, standing: Standing) -> None:
        original(self, delivery, standing)
        delivery.accepted = True

    around(patch, Courier, "accept_again", accept_again)


def _recall(patch: Patch, change: Callable[[Stream], None]) -> None:
    def recall(original: Any, self: Stream, before: Unfinished, now: Now) -> None:
        original(self, before, now)
        change(self)

    around(patch, Stream, "recall", recall)


@broken("the next message after a restart has the number of the last one")
def _(patch: Patch) -> None:
    def change(stream: Stream) -> None:
        stream.delivery.said = stream.delivery.written = max(0, stream.delivery.said - 1)

    _recall(patch, change)


@broken("a number is left out after a restart")
def _(patch: Patch) -> None:
    def change(stream: Stream) -> None:
        stream.delivery.said += 1
        stream.delivery.written += 1

    _recall(patch, change)


@broken("one token too few is there after a restart")
def _(patch: Patch) -> None:
    def change(stream: Stream) -> None:
        del stream.answer.tokens[-1:]

    _recall(patch, change)


@broken("how often it has failed is forgotten at a restart")
def _(patch: Patch) -> None:
    def fare(original: Any, self: Stream, standing: Standing) -> None:
        original(self, replace(standing, fruitless=0, suspected_at=None))

    around(patch, Stream, "fare", fare)


@broken("the deadline is forgotten at a restart")
def _(patch: Patch) -> None:
    original = recovery._shifted
    patch.setattr(
        recovery,
        "_shifted",
        lambda *args, **named: (original(*args, **named)[0], original(*args, **named)[0].mono + 1e6),
    )


@broken("the seed is another one after a restart")
def _(patch: Patch) -> None:
    def stream(original: Any, self: Any, request: NewRequest, times: Any) -> Any:
        return original(self, replace(request, seed=request.seed + 1), times)

    around(patch, Recovery, "_stream", stream)


@broken("replies that were not delivered are forgotten at a restart")
def _(patch: Patch) -> None:
    def restored(original: Any, self: Recovery, restored: Restored, now: Now) -> None:
        original(self, replace(restored, undelivered=()), now)

    around(patch, Recovery, "restore", restored)


@broken("a request that waits is forgotten at a restart")
def _(patch: Patch) -> None:
    def restored(original: Any, self: Recovery, restored: Restored, now: Now) -> None:
        begun = tuple(one for one in restored.unfinished if one.said or one.standing.begun_with is not None)
        original(self, replace(restored, unfinished=begun[:3]), now)

    around(patch, Recovery, "restore", restored)


@broken("a death counts against those who only waited")
def _(patch: Patch) -> None:
    def standing(original: Any, self: Stream, *, begun: bool = True) -> Standing:  # noqa: ARG001
        return original(self)  # type: ignore[no-any-return]

    around(patch, Stream, "standing", standing)
