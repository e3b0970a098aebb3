"""One connection to the broker: a paho client that is used once, and the loop that serves its socket."""

from __future__ import annotations

import functools
import logging
import math
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edged.core.events import MessageArrived, Publish
from edged.mqtt import reasons
from edged.mqtt.happenings import Ack, Arrived, Confirmed, Happening, Ready
from edged.mqtt.properties import Encoded, Limits, encode, for_connect
from edged.mqtt.settings import Settings
from edged.mqtt.waker import Waker

_log = logging.getLogger(__name__)

#: A broker is asked after one keepalive without a byte from it, and given up after so many more without an answer.
ANSWER_KEEPALIVES = 0.5
#: Seconds for which the loop sleeps at least.
SHORTEST_SLEEP_S = 0.01
#: Seconds for the DISCONNECT to leave, where nobody says how long it may take.
GOODBYE_S = 1.0


def _guarded(callback: Callable[..., None]) -> Callable[..., None]:
    """An exception must not get into paho: the packet would be handled over and over again."""

    @functools.wraps(callback)
    def call(*args: Any) -> None:
        try:
            callback(*args)
        except Exception:  # noqa: BLE001 - whatever it is, it is logged with its trace
            _log.exception("an MQTT callback failed")

    return call


class Link:
    """One connection, from the first packet to the last.

    `run` does everything in the thread that calls it; nothing else ever touches the socket. `publish`, `acknowledge`
    and `leave` may be called from one other thread.

    paho is driven through its interface for external event loops instead of by its own thread: that one wakes up every
    second, dies of whatever it cannot parse without a word to anyone, and does not tell when something was last heard.

    Args:
        number: tells this connection from the others of the process.
        settings: the broker.
        will: what the broker publishes if the connection ends without a DISCONNECT; None for nothing.
        subscriptions: topic filters.
        post: takes the happenings, from `run`'s thread; it must not block.
        waker: wakes `run`'s thread.
    """

    def __init__(
        self,
        number: int,
        settings: Settings,
        *,
        will: Publish | None,
        subscriptions: Sequence[str],
        post: Callable[[Happening], None],
        waker: Waker,
    ) -> None:
        self.number = number
        #: What the broker can do; known when the connection is ready.
        self.limits = Limits()
        #: Whether the broker had the session of an earlier connection; known when the connection is ready.
        self.session_present = False
        #: Since when the connection has been ready, on the monotonic clock; None while it is not.
        self.ready_at: float | None = None
        #: When the last byte came from the broker, on the monotonic clock.
        self.heard = time.monotonic()
        #: Ours, or the broker's where it insists, seconds; infinite where the broker wants none.
        self.keepalive_s: float = settings.keepalive_s
        self._settings = settings
        self._will = will
        self._subscriptions = tuple(subscriptions)
        self._post = post
        self._waker = waker
        self._unflushed = False
        self._confirmed: list[tuple[int, int]] = []
        self._client: Client | None = None
        self._reason: str | None = None
        self._leave_by: float | None = None
        #: When the broker was asked for a sign of life; None while it gives some.
        self._asked: float | None = None

    # --- from the other thread ---

    def publish(self, publication: Publish, properties: Encoded | None) -> int | None:
        """Hand a message to the socket's thread, which sends it at the next `flush`.

        Returns:
            Its packet identifier, or None when the connection is over.
        """
        client = self._client
        if client is None:
            return None
        mid = client.publish(
            publication.topic,
            publication.payload,
            qos=min(publication.qos, self.limits.maximum_qos),
            retain=publication.retain and self.limits.retain,
            properties=properties,
        ).mid
        self._unflushed = True
        return mid

    def acknowledge(self, mid: int) -> None:
        """Send a PUBACK at the next `flush`; nothing happens when the connection is over."""
        client = self._client
        if client is not None:
            client.ack(mid, 1)
            self._unflushed = True

    def flush(self) -> None:
        """Have all that was handed over sent now."""
        if self._unflushed:
            self._unflushed = False
            self._waker.wake()

    def leave(self, timeout_s: float) -> None:
        """Say goodbye, so that the broker does not publish the will, and end within the timeout, seconds."""
        self._leave_by = time.monotonic() + timeout_s
        self._waker.wake()

    # --- in its own thread ---

    def run(self) -> str:
        """Connect and serve until the connection is over. Says why it is."""
        try:
            self._client = client = self._connect()
        except OSError as error:
            return reasons.unreachable(self._settings, error)
        except Exception as error:  # noqa: BLE001 - TLS files, a host name: the next attempt may do better
            return f"no connection to the broker at {self._settings.address}: {error}"
        sock = client.socket()
        try:
            return self._serve(client)
        except Exception as error:  # noqa: BLE001 - whatever a broker makes paho stumble over ends one connection
            _log.debug("the connection failed", exc_info=True)
            return reasons.unreadable(self._settings, error)
        finally:
            self._client = None
            self._tell_confirmed()
            if sock is not None:
                sock.close()

    def _connect(self) -> Client:
        """A client whose TCP connection, and TLS where wanted, stands, and whose CONNECT waits to be written."""
        s = self._settings
        five = s.version == 5
        keep = s.session_expiry_s > 0
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=s.client_id,
            clean_session=None if five else not keep,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = s.connect_timeout_s
        client.on_connect = _guarded(self._on_connect)
        client.on_subscribe = _guarded(self._on_subscribe)
        client.on_message = _guarded(self._on_message)
        client.on_publish = _guarded(self._on_publish)
        client.on_disconnect = _guarded(self._on_disconnect)
        # That there is such a callback keeps paho from writing the socket in the thread that publishes.
        client.on_socket_register_write = lambda *_: None
        client.max_inflight_messages = s.window
        if (will := self._will) is not None:
            client.will_set(
                will.topic,
                will.payload,
                qos=will.qos,
                retain=will.retain,
                properties=encode(will.properties, PacketTypes.WILLMESSAGE) if five else None,
            )
        if s.username is not None:
            client.username_pw_set(s.username, s.password)
        if s.tls is not None:
            client.tls_set_context(s.tls.context())  # read again: certificates are renewed while we run
        if five:
            properties = for_connect(s.receive_maximum, s.maximum_packet, s.session_expiry_s)
            client.connect(s.host, s.port, s.keepalive_s, clean_start=not keep, properties=properties)
        else:
            client.connect(s.host, s.port, s.keepalive_s)
        return client

    def _serve(self, client: Client) -> str:
        """Serve the socket until the connection is over."""
        sock = client.socket()
        if isinstance(sock, socket.socket):
            # A chunk must not wait for the acknowledgement of the TCP segment before it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = self.heard = wrote = time.monotonic()
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        goodbye = False
        while (sock := client.socket()) is not None:
            if self._leave_by is not None and not goodbye:
                goodbye = True
                client.disconnect()  # it says nothing of the session, which so is kept as CONNECT wanted
            if self._wait(sock, client.want_write(), self._next_deadline(begun, wrote)):
                code = client.loop_read() or code
                self.heard, self._asked = time.monotonic(), None
                self._tell_confirmed()
            if client.want_write():
                with _corked(sock):
                    code = client.loop_write() or code
                wrote = time.monotonic()
                self._tell_confirmed()
            if client.socket() is None:
                break
            if (over := self._overdue(begun)) is not None:
                return over
            client.loop_misc()  # sends the PINGREQ
            if self._asked is None and (now := time.monotonic()) >= self.heard + self.keepalive_s:
                self._asked = now
        if self._reason is None and self._leave_by is not None:
            return "disconnected as asked"
        return self._reason or reasons.lost(self._settings, code, ready=self.ready_at is not None)

    def _next_deadline(self, begun: float, wrote: float) -> float:
        """The monotonic time at which something has to be done even if nothing comes."""
        deadlines = [
            time.monotonic() + 3600,
            wrote + self.keepalive_s,
            self._answer_by or self.heard + self.keepalive_s,
        ]
        if self.ready_at is None:
            deadlines.append(begun + self._patience_s)
        if self._leave_by is not None:
            deadlines.append(self._leave_by)
        return min(deadlines)

    def _overdue(self, begun: float) -> str | None:
        """Why the connection has to be given up now, if it has to be."""
        now = time.monotonic()
        if self._leave_by is not None:
            return (self._reason or "disconnected, though not in time to say so") if now >= self._leave_by else None
        if self.ready_at is None:
            late = now >= begun + self._patience_s
            return reasons.silent(self._settings, self._patience_s, ready=False) if late else None
        if self._answer_by is None or now < self._answer_by:
            return None
        return reasons.silent(self._settings, (1 + ANSWER_KEEPALIVES) * self.keepalive_s, ready=True)

    @property
    def _answer_by(self) -> float | None:
        """The monotonic time by which the broker has to answer; None where it was not asked.

        Its silence alone does not count: it may be this process that stood still.
        """
        return None if self._asked is None else self._asked + ANSWER_KEEPALIVES * self.keepalive_s

    @property
    def _patience_s(self) -> float:
        """How long CONNACK and SUBACK may take together. paho's own patience with CONNACK is one keepalive."""
        return min(self._settings.connect_timeout_s, self.keepalive_s)

    def _wait(self, sock: Any, write: bool, until: float) -> bool:
        """Sleep until there is something to do, or the time has come. Whether the socket has something to read."""
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            return True
        poll = select.poll()
        poll.register(sock, select.POLLIN | (select.POLLOUT if write else 0))
        poll.register(self._waker, select.POLLIN)
        ready = dict(poll.poll(max(SHORTEST_SLEEP_S, until - time.monotonic()) * 1000))
        if self._waker.fileno() in ready:
            self._waker.drain()
        return bool(ready.get(sock.fileno(), 0) & ~select.POLLOUT)

    # --- callbacks, in its own thread ---

    def _on_connect(
        self, client: Client, _: Any, flags: ConnectFlags, code: ReasonCode, properties: PahoProperties | None
    ) -> None:
        if code.is_failure:
            self._reason = reasons.refused(self._settings, code, properties)
            return
        self.limits = Limits.of(properties)
        self.session_present = bool(flags.session_present)
        self.keepalive_s = client.keepalive or math.inf
        if not self._subscriptions:
            self._become_ready()
        elif self._settings.version == 5:
            options = SubscribeOptions(qos=1, retainAsPublished=True)
            client.subscribe([(f, options) for f in self._subscriptions])
        else:
            client.subscribe([(f, 1) for f in self._subscriptions])

    def _on_subscribe(self, _: Client, __: Any, ___: int, codes: list[ReasonCode], ____: Any) -> None:
        self._reason = reasons.unsubscribed(self._settings, self._subscriptions, codes)
        if self._reason is None:
            self._become_ready()
        else:
            self._leave_by = time.monotonic() + GOODBYE_S

    def _become_ready(self) -> None:
        self.ready_at = time.monotonic()
        self._post(Ready(self))

    def _on_message(self, client: Client, _: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            # Malformed (MQTT 5.0, 1.5.4): no request, and without the PUBACK it would hold a place in the window.
            _log.warning("a message came in under a topic that is not UTF-8; it is ignored")
            client.ack(message.mid, message.qos)
            return
        self._tell_confirmed()  # what came before it is told before it
        properties = message.properties
        expiry = getattr(properties, "MessageExpiryInterval", None)
        self._post(
            Arrived(
                MessageArrived(
                    topic=topic,
                    payload=bytes(message.payload),
                    qos=message.qos,
                    retain=message.retain,
                    response_topic=getattr(properties, "ResponseTopic", None),
                    correlation=getattr(properties, "CorrelationData", None),
                    expiry_s=None if expiry is None else float(expiry),
                    ack=Ack(self.number, message.mid, self) if message.qos else None,
                    packet_id=message.mid if message.qos else None,
                    duplicate=message.dup,
                )
            )
        )

    def _on_publish(self, _: Client, __: Any, mid: int, code: ReasonCode, ___: Any) -> None:
        # paho holds its lock for outgoing messages: publishing from here would deadlock with a publishing thread.
        self._confirmed.append((mid, code.value))

    def _tell_confirmed(self) -> None:
        """Tell what was confirmed: all of a read or write together, so that the core's thread wakes once for it."""
        if self._confirmed:
            confirmed, self._confirmed = tuple(self._confirmed), []
            self._post(Confirmed(self.number, confirmed))

    def _on_disconnect(
        self, _: Client, __: Any, flags: Any, code: ReasonCode, properties: PahoProperties | None
    ) -> None:
        if flags.is_disconnect_packet_from_server and self._reason is None:
            self._reason = reasons.dismissed(self._settings, code, properties)


@contextmanager
def _corked(sock: Any) -> Iterator[None]:
    """Let what is written meanwhile leave together (tcp(7)): the broker wakes once for the chunks of all streams.

    paho writes each packet by itself.
    """
    tcp = isinstance(sock, socket.socket) and sock.family in (socket.AF_INET, socket.AF_INET6)
    if not tcp:
        yield
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    try:
        yield
    finally:
        with suppress(OSError):  # closed by now
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
