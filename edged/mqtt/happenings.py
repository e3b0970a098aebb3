"""What a connection tells the core's thread; `Connection.handle` turns it into events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edged.core.events import MessageArrived
    from edged.mqtt.link import Link


@dataclass(frozen=True, slots=True)
class Ready:
    """Connected, and every subscription granted."""

    link: Link = field(repr=False)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A PUBLISH came in."""

    message: MessageArrived


@dataclass(frozen=True, slots=True)
class Confirmed:
    """PUBACKs came in, or QoS 0 messages went to the socket.

    Attributes:
        connection: number of the connection; packet identifiers mean nothing on another one.
        codes: packet identifier and reason code of each, in their order.
    """

    connection: int
    codes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A message was not even sent, since the broker would drop the connection over it, or the outbox is full."""

    token: object
    reason_code: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection is over, or there was none."""

    connection: int
    reason: str


Happening = Ready | Arrived | Confirmed | Refused | Ended


@dataclass(frozen=True, slots=True)
class Ack:
    """What `MessageArrived.ack` holds: one message of one connection, and no other's of the same packet identifier."""

    connection: int
    mid: int
    link: Link = field(repr=False)
