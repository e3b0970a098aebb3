"""The daemon's connections: what `edged.mqtt` makes of a broker, with the real outbox and without a socket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edged.core import events
from edged.core.events import Published
from edged.mqtt.outbox import Outbox, Sending
from tests.simulation.broker import Link, Message

if TYPE_CHECKING:
    from tests.simulation.node import Node


@dataclass(frozen=True, slots=True)
class Ack:
    """What `MessageArrived.ack` holds."""

    link: Link
    packet_id: int
    number: int


class Uplink:
    """One of the daemon's connections, always connected or about to be.

    Args:
        outbox: what it publishes; None for the one that only listens.
    """

    def __init__(self, node: Node, name: str, outbox: Outbox | None, window: int) -> None:
        self._node = node
        self._name = name
        self._window = window
        self.outbox = outbox
        self.link: Link | None = None
        self.ready = False
        self.connections = 0
        self._under_way: dict[int, Sending] = {}
        self._mid = 0

    def connect(self) -> None:
        """Try to; again a little later where that fails."""
        if self._node.dead or self.link is not None:
            return
        self.link = self._node.broker.connect(self._name, self)
        if self.link is None:
            self._again()

    def _again(self) -> None:
        self._node.after(0.1 + self._node.rng.random(), self.connect)

    def connected(self, link: Link, *, session_present: bool) -> None:
        self._node.post(lambda: self._ready(link, session_present=session_present))

    def message(self, link: Link, message: Message, packet_id: int, *, duplicate: bool) -> None:
        number = self._node.checks.arrived(link, message.correlation, message.topic)
        ack = Ack(link, packet_id, number)
        event = events.MessageArrived(
            message.topic,
            message.payload,
            response_topic=message.response_topic,
            correlation=message.correlation,
            ack=ack,
            packet_id=packet_id,
            duplicate=duplicate,
        )
        self._node.post(lambda: [event])

    def confirmed(self, link: Link, mid: int, code: int) -> None:
        self._node.post(lambda: self._confirm(link, mid, code))

    def ended(self, link: Link) -> None:
        if self.link is link:
            self._node.post(self._ended)
            self._again_after(link)

    def _again_after(self, link: Link) -> None:
        if self.link is link:
            self.link = None
        self._again()

    def _ready(self, link: Link, *, session_present: bool) -> list[events.Event]:
        if link is not self.link:
            return []
        self.connections += 1
        connected = events.BrokerConnected(session_present)
        if self.outbox is None:
            return self._node.control_is_ready()
        if not self._node.has_control:
            return self._node.wait_for_control(lambda: self._open(link, connected))
        return self._open(link, connected)

    def _open(self, link: Link, connected: events.BrokerConnected) -> list[events.Event]:
        assert self.outbox is not None
        if link is not self.link:
            return []
        self.ready = True
        self._send(self.outbox.opened(self._window))
        return [connected]

    def _ended(self) -> list[events.Event]:
        if self.outbox is None:
            return []
        self.ready = False
        self._under_way.clear()
        self.outbox.closed()
        return [events.BrokerDisconnected("cut")]

    def _confirm(self, link: Link, mid: int, code: int) -> list[events.Event]:
        sending = self._under_way.pop(mid, None) if link is self.link and self.ready else None
        if sending is None or self.outbox is None:
            return []
        self._send(self.outbox.confirmed(sending.handle))
        token = sending.publication.token
        return [] if token is None else [Published(token, code)]

    def publish(self, effect: events.Publish) -> None:
        """Into the outbox, and what may leave leaves."""
        assert self.outbox is not None
        if self.outbox.takes(effect):
            self._send(self.outbox.put(effect))

    def _send(self, batch: list[Sending]) -> None:
        for sending in batch:
            if self.link is None:
                return  # its end is on its way here, and puts everything back
            self._mid += 1
            self._under_way[self._mid] = sending
            what = sending.publication
            self._node.checks.sent(ready=self.ready)
            self.link.publish(self._mid, Message(what.topic, what.payload, correlation=what.properties.correlation))

    def drop(self, *, late: bool) -> None:
        """The process is gone."""
        if self.link is not None:
            self.link.cut(late=late)
