"""The daemon's connection to the broker: supervised, one `Link` after the other, with an outbox that outlives them."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache

from edged.core.events import BrokerConnected, BrokerDisconnected, Event, Publish, Published
from edged.mqtt.happenings import Ack, Arrived, Confirmed, Ended, Happening, Ready, Refused
from edged.mqtt.link import Link
from edged.mqtt.outbox import Outbox, Sending
from edged.mqtt.properties import Encoded, encode, packet_size
from edged.mqtt.settings import Settings
from edged.mqtt.waker import Waker
from edged.wire.errors import TopicError
from edged.wire.topics import check_publishable

_log = logging.getLogger(__name__)

#: MQTT 5.0, 2.4: what `Published.reason_code` says of a message that was never sent.
TOPIC_INVALID, PACKET_TOO_LARGE, QUOTA_EXCEEDED = 0x90, 0x95, 0x97
#: The watchdog's patience with a connected broker, in keepalives; the supervisor gives it up well before.
ALIVE_KEEPALIVES = 2.0


class Connection:
    """Always one connection, or the next attempt at it.

    Two threads meet here. The supervisor's, which this class starts, connects, serves the socket, waits between the
    attempts, and tells what happens through `post`. The core's calls everything else; there are no locks, because what
    it works on belongs to it alone.

    Nothing is published between two connections. What the broker had not confirmed is sent again first on the next
    one, in the old order (see `Outbox`); the events say when that is possible.

    Args:
        settings: the broker.
        will: published by the broker when it loses the connection without a goodbye; None for nothing.
        subscriptions: topic filters, QoS 1. A connection counts only when the broker has granted all of them.
        post: the daemon's inbox, thread-safe and without blocking; what it gets goes to `handle`, in order.

    Raises:
        TlsError: a certificate or key of the settings cannot be used.
        TopicError: the will's topic is not publishable.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        will: Publish | None,
        subscriptions: Sequence[str],
        post: Callable[[Happening], None],
    ) -> None:
        if will is not None:
            check_publishable(will.topic)
        self._settings = settings.checked()
        self._will = will
        self._subscriptions = tuple(subscriptions)
        self._post = post
        # The supervisor's, read by others:
        self._attempt: Link | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        # The core thread's:
        self._link: Link | None = None
        self._outbox = Outbox(capacity=settings.outbox)
        self._under_way: dict[int, Sending] = {}
        self._connections = 0
        self._encoded = lru_cache(maxsize=256)(encode)
        self._check_topic = lru_cache(maxsize=256)(check_publishable)

    # --- the core's thread ---

    @property
    def connected(self) -> bool:
        """Whether publishes flow."""
        return self._link is not None

    @property
    def connections(self) -> int:
        """How many connections have become ready since the start."""
        return self._connections

    @property
    def backlog(self) -> int:
        """Messages that the broker has not confirmed."""
        return len(self._outbox)

    @property
    def alive(self) -> bool:
        """For the watchdog: the supervisor lives, and if it is connected, has heard of the broker lately."""
        link = self._attempt
        if self._thread is None or not self._thread.is_alive():
            return False
        if link is None or link.ready_at is None:
            return True
        return time.monotonic() - link.heard < ALIVE_KEEPALIVES * link.keepalive_s

    def start(self) -> None:
        """Begin to connect. Failures are reported as `BrokerDisconnected` and tried again for ever.

        Raises:
            RuntimeError: it was started before.
        """
        if self._thread is not None:
            raise RuntimeError("this connection was started before; make a new one")
        self._thread = threading.Thread(target=self._supervise, name="edged-mqtt", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Say goodbye to the broker, so that the will is not published, and end the thread.

        What waits in the outbox is not waited for: see to `backlog` before. Harmless when done twice.

        Args:
            timeout_s: how long all of it may take, seconds; after it the socket is closed as it is.

        Returns:
            Whether the thread has ended. It can be held up by a name server or by a TCP connection that is being made,
            and then does not keep the process from ending.
        """
        self._stopping.set()
        attempt = self._attempt
        if attempt is not None:
            attempt.leave(timeout_s * 0.8)
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def publish(self, effect: Publish) -> None:
        """Put a message into the outbox, and on its way with the next `flush` if gate and window are open.

        What would make the broker drop the connection, now and after every reconnect, is refused instead: its token
        comes back with a reason code of 0x80 or above, as if the broker had refused it.
        """
        try:
            self._check_topic(effect.topic)
        except TopicError as error:
            _log.error("not published: %s", error)
            self._refuse(effect, TOPIC_INVALID)
            return
        if self._outbox.takes(effect):
            self._send(self._outbox.put(effect))
        else:
            _log.warning("not published: %d messages wait, and this one is of QoS 0", len(self._outbox))
            self._refuse(effect, QUOTA_EXCEEDED)

    def acknowledge(self, ack: object) -> None:
        """Send the PUBACK that `MessageArrived.ack` stands for; it is dropped when that connection is over.

        Raises:
            TypeError: this is not from a `MessageArrived` of this room.
        """
        if not isinstance(ack, Ack):
            raise TypeError(f"{ack!r} is no acknowledgement: hand back what MessageArrived.ack held")
        ack.link.acknowledge(ack.mid)
        if ack.link is not self._link:  # not ready yet, or over
            ack.link.flush()

    def flush(self) -> None:
        """Send all that was published and acknowledged: together, so that the broker wakes once for it."""
        if self._link is not None:
            self._link.flush()

    def handle(self, happening: Happening) -> list[Event]:
        """Take in what was posted, send what it makes room for, and tell the core."""
        match happening:
            case Arrived(message):
                return [message]
            case Confirmed(connection, codes):
                return [event for mid, code in codes for event in self._confirm(connection, mid, code)]
            case Refused(token, reason_code):
                return [Published(token, reason_code)]
            case Ready(link):
                self._link = link
                if self._connections and self._settings.session_expiry_s and not link.session_present:
                    _log.warning(
                        "the broker at %s has lost the session of %r, and with it the messages that waited there; let "
                        "it keep sessions through a restart, and for as long as mqtt.session_expiry_s says",
                        self._settings.address,
                        self._settings.client_id,
                    )
                self._connections += 1
                self._send(self._outbox.opened(min(link.limits.receive_maximum, self._settings.window)))
                return [BrokerConnected(link.session_present, link.limits.maximum_packet)]
            case Ended(connection, reason):
                if self._link is not None and self._link.number == connection:
                    self._link = None
                    self._under_way.clear()
                    self._outbox.closed()
                return [BrokerDisconnected(reason)]

    def _confirm(self, connection: int, mid: int, reason_code: int) -> list[Event]:
        if self._link is None or self._link.number != connection or mid not in self._under_way:
            return []
        handle, publication = self._under_way.pop(mid)
        self._send(self._outbox.confirmed(handle))
        return [] if publication.token is None else [Published(publication.token, reason_code)]

    def _send(self, batch: list[Sending]) -> None:
        link = self._link
        if link is None:
            return
        todo = deque(batch)
        while todo:
            sending = todo.popleft()
            properties = self._properties(sending.publication)
            if self._too_large(link, sending.publication, properties):
                _log.error(
                    "not published: the packet is larger than the broker takes, which is %s bytes",
                    link.limits.maximum_packet,
                )
                self._refuse(sending.publication, PACKET_TOO_LARGE)
                todo.extend(self._outbox.confirmed(sending.handle))
                continue
            mid = link.publish(sending.publication, properties)
            if mid is None:
                return  # over already; Ended is on its way here, and puts everything back
            self._under_way[mid] = sending

    def _properties(self, publication: Publish) -> Encoded | None:
        return self._encoded(publication.properties) if self._settings.version == 5 else None

    @staticmethod
    def _too_large(link: Link, publication: Publish, properties: Encoded | None) -> bool:
        """Whether the broker would drop the connection over this message, now and after every reconnect."""
        most = link.limits.maximum_packet
        return (
            most is not None and packet_size(publication.topic, publication.payload, publication.qos, properties) > most
        )

    def _refuse(self, publication: Publish, reason_code: int) -> None:
        if publication.token is not None:
            self._post(Refused(publication.token, reason_code))

    # --- the supervisor's thread ---

    def _supervise(self) -> None:
        with Waker() as waker:
            self._keep_connecting(waker)

    def _keep_connecting(self, waker: Waker) -> None:
        number = failures = 0
        while True:
            number += 1
            link = self._attempt = Link(
                number,
                self._settings,
                will=self._will,
                subscriptions=self._subscriptions,
                post=self._post,
                waker=waker,
            )
            if self._stopping.is_set():  # after the assignment: stop() does the two the other way round
                return
            reason = link.run()
            if link.ready_at is not None and time.monotonic() - link.ready_at >= self._settings.steady_s:
                failures = 0
            pause = self._pause(failures)
            failures += 1
            if not self._stopping.is_set():
                reason = f"{reason}; next attempt in {pause:.1f} s"
            try:
                self._post(Ended(number, reason))
            except Exception:  # noqa: BLE001 - whatever it is, it is logged with its trace
                _log.exception("the end of a connection could not be reported: %s", reason)
            if self._stopping.wait(pause):
                return

    def _pause(self, failures: int) -> float:
        """Seconds until the next attempt: a random half of it, so that a fleet does not come back in one moment."""
        most = min(self._settings.backoff_max_s, self._settings.backoff_min_s * 2.0 ** min(failures, 32))
        return most * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
