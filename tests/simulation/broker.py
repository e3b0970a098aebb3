"""A broker: sessions with queues, QoS 1 both ways, and everything that may go wrong with one."""

from __future__ import annotations

import itertools
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tests.simulation.checks import Checks
from tests.simulation.clock import Agenda, Clock
from tests.simulation.wires import Wire


@dataclass(frozen=True, slots=True)
class Message:
    """A PUBLISH."""

    topic: str
    payload: bytes
    response_topic: str | None = None
    correlation: bytes | None = None


class Client(Protocol):
    """The other end of a connection."""

    def connected(self, link: Link, *, session_present: bool) -> None:
        """CONNACK and SUBACK came."""

    def message(self, link: Link, message: Message, packet_id: int, *, duplicate: bool) -> None:
        """A PUBLISH came."""

    def confirmed(self, link: Link, mid: int, code: int) -> None:
        """A PUBACK came."""

    def ended(self, link: Link) -> None:
        """The connection is over."""


@dataclass(slots=True, eq=False)
class Session:
    """What the broker keeps of one client.

    Attributes:
        wants: its subscriptions.
        link: its connection; `last`: the one that was there last.
        window: so many messages may be under way to it.
        most: so many wait for it; what comes then is lost.
    """

    name: str
    wants: Callable[[str], bool]
    window: int
    most: int
    known: bool = False
    queue: deque[Message] = field(default_factory=deque)
    under_way: OrderedDict[int, Message] = field(default_factory=OrderedDict)
    link: Link | None = None
    last: Link | None = None


@dataclass(slots=True)
class Behaviour:
    """How the broker and the network are.

    Attributes:
        delay_s: how long a packet takes, on average.
        full: the share of messages that are refused because there is no room for them.
        forbidden: the share that is refused for good.
        unmatched: the share of PUBACKs that say that nobody listens.
        twice: the share of messages that are delivered twice.
    """

    delay_s: float = 0.005
    full: float = 0.0
    forbidden: float = 0.0
    unmatched: float = 0.0
    twice: float = 0.0


class Link:
    """A connection of one client."""

    def __init__(self, broker: Broker, session: Session, client: Client) -> None:
        self.session = session
        self.client = client
        self.up = broker.wire()
        self.down = broker.wire()
        self._broker = broker

    def publish(self, mid: int, message: Message) -> None:
        self.up.send(message.topic, lambda: self._broker.published(self, mid, message))

    def acknowledge(self, packet_id: int) -> None:
        self.up.send("PUBACK", lambda: self._broker.acknowledged(self, packet_id))

    def cut(self, *, late: bool = False) -> None:
        """It is over; `late`: what the client has sent still arrives, as long as it does not come back."""
        self.down.cut()
        if not late:
            self.up.cut()
        if self.session.link is self:
            self.session.link = None


class Broker:
    """Routes messages between sessions.

    Attributes:
        behaviour: what it does wrong, at the moment.
        up: it runs.
        taken: how often a request was queued for the daemon, by its correlation data.
    """

    def __init__(self, agenda: Agenda, clock: Clock, rng: random.Random, checks: Checks) -> None:
        self._agenda = agenda
        self._clock = clock
        self._rng = rng
        self._checks = checks
        self._packet_ids = itertools.count(1)
        self.sessions: dict[str, Session] = {}
        self.behaviour = Behaviour()
        self.up = True
        self.taken: Counter[bytes | None] = Counter()

    def wire(self) -> Wire:
        return Wire(self._agenda, self._clock, self._rng, self.behaviour.delay_s)

    def session(self, name: str, wants: Callable[[str], bool], *, window: int, most: int) -> Session:
        """Say who may come."""
        self.sessions[name] = Session(name, wants, window, most)
        return self.sessions[name]

    def connect(self, name: str, client: Client) -> Link | None:
        """CONNECT and SUBSCRIBE: None where the broker is not there."""
        if not self.up:
            return None
        session = self.sessions[name]
        if session.last is not None:
            session.last.up.cut()
        if session.link is not None:
            old = session.link
            old.cut()
            old.client.ended(old)
        present, session.known = session.known, True
        link = session.link = session.last = Link(self, session, client)
        link.down.send("", lambda: client.connected(link, session_present=present))
        for packet_id, message in session.under_way.items():
            self._deliver(link, packet_id, message, duplicate=True)
        self._pump(session)
        return link

    def stop(self, *, forget: bool) -> None:
        """It goes down; `forget`: and all that it knew."""
        self.up = False
        for session in self.sessions.values():
            link = session.link
            if link is not None:
                link.cut()
                self._agenda.after(self._rng.random(), lambda link=link: link.client.ended(link))  # type: ignore[misc]  # mypy cannot type a lambda with a default
            if forget:
                session.known = False
                session.queue.clear()
                session.under_way.clear()

    def published(self, link: Link, mid: int, message: Message) -> None:
        """A PUBLISH from a client."""
        behaviour, rng = self.behaviour, self._rng
        code = 0
        if link.session.name == "edged-n" and message.topic.find("/status") < 0:
            dice = rng.random()
            if dice < behaviour.full:
                code = 0x97
            elif dice < behaviour.full + behaviour.forbidden:
                code = 0x87
            elif rng.random() < behaviour.unmatched:
                code = 0x10
        if code < 0x80:
            self._checks.broker_has(message.topic, message.payload)
            self._route(message)
        else:
            self._checks.broker_refuses(message.payload, code)
        if link.session.link is link:
            link.down.send(message.topic, lambda: link.client.confirmed(link, mid, code))

    def _route(self, message: Message) -> None:
        for session in self.sessions.values():
            if session.known and session.wants(message.topic):
                if len(session.queue) >= session.most:
                    continue
                session.queue.append(message)
                if session.name == "edged-n":
                    self.taken[message.correlation] += 1
                self._pump(session)

    def acknowledged(self, link: Link, packet_id: int) -> None:
        """A PUBACK from a client."""
        link.session.under_way.pop(packet_id, None)
        self._pump(link.session)

    def _pump(self, session: Session) -> None:
        while session.link is not None and session.queue and len(session.under_way) < session.window:
            packet_id = next(self._packet_ids) % 65535 + 1
            message = session.under_way[packet_id] = session.queue.popleft()
            self._deliver(session.link, packet_id, message, duplicate=False)

    def _deliver(self, link: Link, packet_id: int, message: Message, *, duplicate: bool) -> None:
        link.down.send(message.topic, lambda: link.client.message(link, message, packet_id, duplicate=duplicate))
        if self._rng.random() < self.behaviour.twice and not link.session.name.startswith("edged"):
            link.down.send(message.topic, lambda: link.client.message(link, message, packet_id, duplicate=True))
