"""One connection to the broker, from CONNECT to its end. It is never opened twice: after a loss, make a new one.

paho is touched by one thread alone, the connection's own: the others hand it commands through a queue that needs no
lock. So a command may come from anywhere, a finaliser or a signal handler included. paho's own reconnecting is not
used, because it sends again what nobody waits for any more.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from paho.mqtt.client import MQTTMessage
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edged.client.commands import Cancel, Command, Leave, Replay, Route, Send, Shut, Watch, replay
from edged.client.errors import InvalidRequest, NodeUnavailable, NotConnected, PublishRefused
from edged.client.notes import Confirmed, Connected, Disconnected, Note, Subscribed, paho_client
from edged.client.presence import GONE, Cards, update
from edged.client.settings import Settings
from edged.wire.errors import ErrorCode
from edged.wire.messages import Status
from edged.wire.topics import Kind

if TYPE_CHECKING:
    from paho.mqtt.client import SocketLike  # does not exist at run time

#: The most publishes that wait for the broker's confirmation at once; fewer if it says so (MQTT 5.0, 3.2.2.3.3).
_WINDOW = 20
#: PUBACK: nobody is subscribed (MQTT 5.0, 3.4.2.1). From 0x80 on, reason codes are failures.
_NOBODY, _FAILURE = 0x10, 0x80
#: More than a PUBLISH has besides topic and payload: fixed header, topic length, packet identifier, no properties.
_PUBLISH_OVERHEAD = 16
#: How long the end waits for the broker to confirm what was published last, seconds.
_CLOSE_S = 1.0
#: How much later than the deadline of connecting the thread's own verdict may come, seconds.
_VERDICT_S = 1.0
#: The longest sleep of an idle connection, seconds: the keep alive is looked after in between.
_IDLE_S = 5.0


class Connection:
    """A connection and its thread.

    Attributes:
        ready_at: when it was connected and subscribed, on the monotonic clock; None before.
        lost: why it is over, in words; None before.
        give_up_at: when nobody should wait for `ready_at` any longer, though there be no verdict (a name server that
            does not answer, say).
        cards: the last status card of each node that was seen. Replaced, never changed.
    """

    def __init__(self, settings: Settings, client: str) -> None:
        """Prepare; nothing runs before `open`.

        Args:
            settings: how to connect, and what to subscribe to.
            client: the CLIENT level of the reply topics.
        """
        self._bell, self._wire = socket.socketpair()
        self._bell.setblocking(False)
        self._wire.setblocking(False)
        self.ready_at: float | None = None
        self.lost: str | None = None
        self.cards: Cards = {}
        self._settings = settings
        self._client = client
        self.give_up_at = 0.0
        self._deadline = 0.0  # of becoming ready, later of closing
        self._closing = False
        self._reason = f"the broker hung up; does it speak MQTT {settings.version} on this port?"
        self._commands: deque[Command] = deque()
        self._notes: deque[Note] = deque()
        self._routes: dict[str, Route] = {}
        self._carded: dict[str, bool] = {}  # by id: whether a route's last card said that nobody is there
        self._unconfirmed: dict[int, Route | None] = {}  # by mid; the route of a request, None for a `cancel`
        self._watchers: set[Callable[[], None]] = set()
        self._waiting: deque[tuple[str, bytes, Route | None]] = deque()  # publishes that found the window full
        self._window = _WINDOW
        self._reply_mid: int | None = None  # of the SUBSCRIBE
        self._max_packet: int | None = None
        self._paho, self._tls = paho_client(settings, self._notes)
        self._thread = threading.Thread(target=self._run, name="edged-client", daemon=True)

    def __del__(self) -> None:
        # Not before: as long as somebody holds this object, `submit` may ring the bell.
        self._bell.close()
        self._wire.close()

    # --- for other threads ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Start connecting. `ready_at` or `lost` is set within about `connect_timeout`."""
        self._deadline = time.monotonic() + self._settings.connect_timeout
        self.give_up_at = self._deadline + _VERDICT_S
        self._thread.start()

    def submit(self, command: Command) -> None:
        """Hand over a command. After the end it is answered at once: a request with `NotConnected`."""
        waits = isinstance(command, Send | Watch)
        if self.lost is not None and not waits:
            return  # and no lock is touched, for a finaliser's sake
        self._commands.append(command)
        if self.lost is not None and waits:
            self._refuse()
        else:
            with contextlib.suppress(BlockingIOError):  # full: it rings already
                self._bell.send(b"\0")

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, at most `timeout` seconds."""
        self._thread.join(timeout)

    def error(self) -> NotConnected:
        """Why there is no connection, as an exception."""
        return NotConnected(self._settings.broker, self.lost or self._reason)

    # --- the connection's own thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        settings = self._settings
        try:
            self._paho.connect(settings.host, settings.tcp_port, settings.keepalive)
            if isinstance(sock := self._paho.socket(), socket.socket):
                # Else a `cancel` may wait until the broker has acknowledged the packet before.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with selectors.DefaultSelector() as selector:
                selector.register(self._wire, selectors.EVENT_READ)
                while self._turn(selector):
                    pass
        except OSError as error:
            self._reason = error.strerror or str(error) or type(error).__name__
        except Exception as error:  # noqa: BLE001 - paho raises all sorts of things at bytes that are not MQTT
            self._reason = f"{type(error).__name__}: {error}"
        finally:
            self._end()

    def _turn(self, selector: selectors.BaseSelector) -> bool:
        """Wait for the network or a command, and do what is to be done; False at the end."""
        while self._commands:
            self._obey(self._commands.popleft())
        now = time.monotonic()
        sock = self._paho.socket()
        if sock is None or self._is_over(now):
            return False
        events = self._wait(selector, sock, self._patience(now))
        if events & selectors.EVENT_READ:
            self._paho.loop_read()
        if events & selectors.EVENT_WRITE:
            self._paho.loop_write()
        self._paho.loop_misc()
        while self._notes:
            self._hear(self._notes.popleft())
        return True

    def _is_over(self, now: float) -> bool:
        """Whether all is said and done, or it took too long to connect."""
        if self._closing and (not self._unconfirmed or now >= self._deadline):
            self._paho.disconnect()
            return True
        if self.ready_at is None and now >= self._deadline:
            self._reason = f"the broker did not answer within {self._settings.connect_timeout:g} s"
            return True
        return False

    def _wait(self, selector: selectors.BaseSelector, sock: SocketLike, seconds: float) -> int:
        """Sleep until the socket or the bell has something; returns what the socket is ready for."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._paho.want_write() else 0)
        if sock not in selector.get_map():
            selector.register(sock, wanted)
        elif selector.get_key(sock).events != wanted:
            selector.modify(sock, wanted)
        # What TLS has decrypted already does not show on the socket.
        decrypted = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        happened = {key.fileobj: mask for key, mask in selector.select(0 if decrypted else seconds)}
        if self._wire in happened:
            self._wire.recv(4096)
        return happened.get(sock, 0) | (selectors.EVENT_READ if decrypted else 0)

    def _patience(self, now: float) -> float:
        """How long to wait for something to happen, seconds."""
        # The broker may have chosen another keep alive than ours, 0 being none (MQTT 5.0, 3.2.2.3.14).
        idle = min(_IDLE_S, self._paho.keepalive / 4 or _IDLE_S)
        return idle if self.ready_at is not None and not self._closing else max(0.0, min(idle, self._deadline - now))

    def _end(self) -> None:
        """Release the socket and tell everyone who waits."""
        sock = self._paho.socket()
        if sock is not None:
            sock.close()
        if self._tls is not None:
            self._tls.close()
        self.lost = self._reason
        for route in self._routes.values():
            route.inbox.put(self.error())
        self._routes.clear()
        self._refuse()
        for wake in self._watchers:
            wake()

    def _refuse(self) -> None:
        """Answer the commands that came too late; by any thread, since each takes a command off only once."""
        with contextlib.suppress(IndexError):
            while True:
                match self._commands.popleft():
                    case Send(route, _):
                        route.inbox.put(self.error())
                    case Watch(wake, True):
                        wake()

    # --- commands ---------------------------------------------------------------------------------------------------

    def _obey(self, command: Command) -> None:
        match command:
            case Send(route, payload):
                self._send(route, payload)
            case Cancel(route) | Replay(route):
                self._control(route, b"cancel" if isinstance(command, Cancel) else replay(command.missing))
            case Leave(route, ended):
                if self._routes.get(route.id) is route:
                    del self._routes[route.id]
                    self._carded.pop(route.id, None)
                    if not ended:
                        self._cancel(route)
            case Watch(wake, True):
                self._watchers.add(wake)
                wake()
            case Watch(wake, False):
                self._watchers.discard(wake)
            case Shut():
                for route in self._routes.values():
                    self._cancel(route)
                self._reason = "the client was closed"
                self._closing, self._deadline = True, time.monotonic() + _CLOSE_S

    def _send(self, route: Route, payload: bytes) -> None:
        size = len(payload) + len(route.request_topic) + _PUBLISH_OVERHEAD
        if self._closing or self.ready_at is None:
            route.inbox.put(self.error())
        elif route.id in self._routes:
            message = f"a request with the id {route.id!r} is running on this client: ids must differ"
            route.inbox.put(InvalidRequest(message, field="id", code=ErrorCode.ID_CONFLICT))
        elif self._max_packet is not None and size > self._max_packet:
            message = f"the request has {len(payload)} bytes; the broker takes packets of up to {self._max_packet}"
            route.inbox.put(InvalidRequest(message, code=ErrorCode.TOO_LARGE))
        else:
            self._routes[route.id] = route
            if (card := self.cards.get(route.node)) is not None:
                self._give_card(route, card)
            self._publish(route.request_topic, payload, route)

    def _cancel(self, route: Route) -> None:
        self._control(route, b"cancel")

    def _control(self, route: Route, payload: bytes) -> None:
        if self.ready_at is not None:
            self._publish(route.control_topic, payload, None)

    def _publish(self, topic: str, payload: bytes, route: Route | None) -> None:
        self._waiting.append((topic, payload, route))
        self._fill_window()

    def _fill_window(self) -> None:
        while self._waiting and len(self._unconfirmed) < self._window:
            topic, payload, route = self._waiting.popleft()
            # If it fails the socket is gone, and the next turn ends the connection: all routes hear of it.
            self._unconfirmed[self._paho.publish(topic, payload, qos=1).mid] = route

    # --- notes ------------------------------------------------------------------------------------------------------

    def _hear(self, note: Note) -> None:
        match note:
            case MQTTMessage():
                self._arrived(note)
            case Confirmed(mid, code):
                self._confirmed(self._unconfirmed.pop(mid, None), code)
                self._fill_window()
            case Connected(code, properties):
                self._connected(code, properties)
            case Subscribed(mid, codes):
                self._subscribed(mid, codes)
            case Disconnected(code, by_broker) if self.ready_at is not None and not self._closing:
                self._reason = f"the broker ended the connection: {code}" if by_broker else "the connection was lost"

    def _connected(self, code: ReasonCode, properties: Properties | None) -> None:
        if code.is_failure:
            self._reason = f"the broker refused the connection: {code}"
            return
        self._max_packet = getattr(properties, "MaximumPacketSize", None)
        self._window = min(_WINDOW, getattr(properties, "ReceiveMaximum", _WINDOW))
        # In this order: a broker that takes packet by packet sends the retained cards before it grants the replies.
        self._paho.subscribe(self._settings.status_filter(), 1)
        _, self._reply_mid = self._paho.subscribe(self._settings.reply_filter(self._client), 1)

    def _subscribed(self, mid: int, codes: list[ReasonCode]) -> None:
        if mid != self._reply_mid:
            return  # without status cards there is no early warning, but there are answers
        if codes[0].is_failure:
            topics = self._settings.reply_filter(self._client)
            self._reason = f"the broker refused the subscription to {topics}: {codes[0]}"
            self._paho.disconnect()
            return
        self.ready_at = time.monotonic()
        self._notify()

    def _confirmed(self, route: Route | None, code: ReasonCode) -> None:
        if route is None:
            return
        if code.value == _NOBODY:
            card = self.cards.get(route.node)
            reason = f"nobody is subscribed to {route.request_topic}"
            route.inbox.put(NodeUnavailable(route.node, reason, state=None if card is None else card.state))
        elif code.value >= _FAILURE:
            route.inbox.put(PublishRefused(route.request_topic, code.value, str(code)))

    def _arrived(self, message: MQTTMessage) -> None:
        try:
            levels = message.topic.removeprefix(self._settings.topic_root + "/").split("/")
        except UnicodeDecodeError:
            return
        match levels:
            case [node, Kind.STATUS]:
                cards = update(self.cards, node, bytes(message.payload))
                if cards is not self.cards:
                    self.cards = cards
                    for route in self._routes.values():
                        if route.node == node:
                            self._give_card(route, cards[node])
                    self._notify()
            case [_, Kind.REPLY, self._client, name] if name in self._routes:
                route = self._routes[name]
                if not route.inbox.put(bytes(message.payload)):
                    self._obey(Leave(route, ended=False))

    def _give_card(self, route: Route, card: Status) -> None:
        """Tell a route of its node's first card, its death and its return; the many in between are no news to it."""
        gone = card.state in GONE
        if self._carded.get(route.id) != gone:
            self._carded[route.id] = gone
            route.inbox.put(card)

    def _notify(self) -> None:
        for wake in self._watchers:
            wake()
