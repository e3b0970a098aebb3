"""Daemons that lose something while they run: to their engines, to the broker, to who asks again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edged.core import courier
from edged.core.courier import Courier
from edged.core.delivery import Delivery
from edged.core.ends import Ends
from edged.core.events import Generate, MessageArrived, Now, Published
from edged.core.fleet import Engine
from edged.core.holds import Holds
from edged.core.intake import Intake
from edged.core.queue import WaitingQueue
from edged.core.receipts import Receipts
from edged.core.reception import Reception
from edged.core.records import Past
from edged.core.stream import Ending, Stream
from edged.journal import Journal
from edged.mqtt.outbox import Outbox
from tests.simulation.broken.registry import Patch, around, broken

# --- engines ---


def _generated(patch: Patch, change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> None:
    def begin(original: Any, self: Stream, now: Now) -> Generate:
        order: Generate = original(self, now)
        return replace(order, generated=change(order.generated))

    around(patch, Stream, "begin", begin)


@broken("an engine goes on one token too early")
def _(patch: Patch) -> None:
    _generated(patch, lambda tokens: tokens[:-1])


@broken("an engine goes on one token too late")
def _(patch: Patch) -> None:
    _generated(patch, lambda tokens: (*tokens, tokens[-1]) if tokens else tokens)


@broken("text that waits dies with the engine")
def _(patch: Patch) -> None:
    def outlive(original: Any, self: Stream, *, outside: bool) -> Ending | None:
        self.answer._waiting.clear()
        return original(self, outside=outside)  # type: ignore[no-any-return]

    around(patch, Stream, "outlive", outlive)


@broken("nobody waits for a model that cannot be loaded at once")
def _(patch: Patch) -> None:
    patch.setattr(Engine, "given_up", property(lambda self: self.failure))


@broken("text that waits is not said at the end")
def _(patch: Patch) -> None:
    def finish(original: Any, self: Ends, stream: Stream, *args: Any) -> None:
        stream.answer._waiting.clear()
        original(self, stream, *args)

    around(patch, Ends, "finish", finish)


@broken("a pause never ends by itself")
def _(patch: Patch) -> None:
    patch.setattr(Holds, "on_time", lambda self, now: [])  # noqa: ARG005
    patch.setattr(Holds, "next", None)


@broken("a cancel is forgotten where the request waits")
def _(patch: Patch) -> None:
    def cancel(original: Any, self: Ends, stream: Stream, ending: Ending, now: Now) -> None:
        if stream.started is not None and not stream.resumed:
            original(self, stream, ending, now)

    around(patch, Ends, "cancel", cancel)


@broken("requests are taken in without bound where a place is free and nobody gets it")
def _(patch: Patch) -> None:
    patch.setattr(WaitingQueue, "waits", lambda self, model: False)  # noqa: ARG005


# --- the broker ---


@broken("messages are sent while there is no connection")
def _(patch: Patch) -> None:
    def closed(original: Any, self: Outbox) -> None:
        window = self._window
        original(self)
        self._window = window

    around(patch, Outbox, "closed", closed)


@broken("what was under way when the connection ended is forgotten")
def _(patch: Patch) -> None:
    def closed(self: Outbox) -> None:
        self._window = 0
        self._under_way.clear()

    patch.setattr(Outbox, "closed", closed)


@broken("what was under way is sent again behind what is new")
def _(patch: Patch) -> None:
    def closed(self: Outbox) -> None:
        self._window = 0
        self._waiting.update(self._under_way)
        self._under_way.clear()

    patch.setattr(Outbox, "closed", closed)


@broken("a message that the broker had no room for is not sent again")
def _(patch: Patch) -> None:
    def published(original: Any, self: Receipts, event: Published, now: Now) -> None:
        code = 0 if event.reason_code in courier._PASSING else event.reason_code
        original(self, Published(event.token, code), now)

    around(patch, Receipts, "published", published)


@broken("a replay of what runs begins one message too late")
def _(patch: Patch) -> None:
    def again(original: Any, self: Courier, delivery: Delivery, seq: int) -> None:
        original(self, delivery, seq + 1)

    around(patch, Courier, "again", again)


@broken("a replay of what has ended begins one message too late")
def _(patch: Patch) -> None:
    def send_again(original: Any, self: Reception, past: Past, first: int, **named: Any) -> None:
        original(self, past, min(first + 1, past.messages - 1), **named)

    around(patch, Reception, "_send_again", send_again)


# --- the same again ---


@broken("a request that has ended is run again")
def _(patch: Patch) -> None:
    patch.setattr(Journal, "find", lambda self, key: None)  # noqa: ARG005


@broken("a request without an id is run again where the broker repeats it")
def _(patch: Patch) -> None:
    patch.setattr(Journal, "redelivered", lambda self, packet_id, digest: None)  # noqa: ARG005


@broken("another body under the same id is taken for the same request")
def _(patch: Patch) -> None:
    def order(original: Any, self: Any, event: MessageArrived, **named: Any) -> Any:
        return replace(original(self, event, **named), digest=b"same")

    around(patch, Intake, "order", order)
