"""A broker that does what a test wants, packet by packet, and keeps what it was sent in order."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

from tests.mqtt import packets
from tests.mqtt.packets import Codec, Connect, Publish, Subscribe

#: Seconds until a wait in a test is given up.
PATIENCE_S = 20.0

Script = Callable[["Session"], None]


class Session:
    """The broker's side of one connection. A script ends by returning; then the socket is closed."""

    def __init__(self, broker: ScriptedBroker, sock: socket.socket, number: int) -> None:
        self.number = number
        self.codec = Codec()
        self._broker = broker
        self._sock = sock

    def read(self) -> tuple[int, int, bytes]:
        """The next packet: type, flags, body.

        Raises:
            EOFError: the client has closed the connection.
        """
        first = self._exactly(1)[0]
        length = shift = 0
        while True:
            byte = self._exactly(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        return first >> 4, first & 15, self._exactly(length)

    def send(self, raw: bytes) -> None:
        self._sock.sendall(raw)

    def read_connect(self) -> Connect:
        kind, _, body = self.read()
        assert kind == packets.CONNECT
        connect = self.codec.connect(body)
        self._broker.note_connect(connect)
        return connect

    def accept(self, code: int = 0, *, session_present: bool = False, **properties: int) -> None:
        """Read CONNECT and answer it."""
        self.read_connect()
        self.send(self.codec.make_connack(code, session_present=session_present, **properties))

    def read_publish(self, timeout_s: float | None = None) -> Publish | None:
        """The next PUBLISH; what else comes is answered. None after the timeout, or when the client leaves.

        The timeout is for the first byte only.
        """
        while True:
            self._sock.settimeout(timeout_s or PATIENCE_S)
            try:
                kind, flags, body = self.read()
            except TimeoutError:
                if timeout_s is None:
                    raise
                return None
            except EOFError:
                return None
            if kind == packets.PUBLISH:
                publish = self.codec.publish(self.number, flags, body)
                self._broker.note_publish(publish)
                return publish
            if kind == packets.DISCONNECT:
                self._broker.note_goodbye(self.number)
                return None
            self._answer(kind, body)

    def read_subscribe(self) -> Subscribe:
        kind, _, body = self.read()
        assert kind == packets.SUBSCRIBE
        return self.codec.subscribe(body)

    def puback(self, publish: Publish, code: int = 0) -> None:
        if publish.qos:
            self.send(self.codec.make_puback(publish.mid, code))

    def serve(self) -> None:
        """Do what a broker does, until the client leaves."""
        while (publish := self.read_publish()) is not None:
            self.puback(publish)

    def _answer(self, kind: int, body: bytes) -> None:
        if kind == packets.PINGREQ:
            self.send(packets.packet(packets.PINGRESP, 0))
        elif kind == packets.SUBSCRIBE:
            subscribe = self.codec.subscribe(body)
            self.send(self.codec.make_suback(subscribe.mid, [1] * len(subscribe.filters)))
        elif kind == packets.PUBACK:
            self._broker.note_puback(self.number, int.from_bytes(body[:2], "big"))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._sock.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data


def polite(session: Session) -> None:
    """A broker without surprises."""
    session.accept()
    session.serve()


class ScriptedBroker:
    """Listens on a port of 127.0.0.1; the nth connection runs the nth script, all further ones run the last.

    A context manager: it ends all connections, and raises what a script raised.
    """

    host = "127.0.0.1"

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self._scripts = scripts
        self._tls = tls
        self._listener = socket.create_server((self.host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._changed = threading.Condition()
        self._connects: list[Connect] = []
        self._published: list[Publish] = []
        self._pubacks: list[tuple[int, int]] = []
        self._goodbyes: list[int] = []
        self._sockets: list[socket.socket] = []
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._accept, name="scripted-broker")]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        # shutdown, since close alone does not end an accept or a recv in another thread
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        if self._failures:
            raise self._failures[0]

    @property
    def connects(self) -> list[Connect]:
        with self._changed:
            return list(self._connects)

    @property
    def published(self) -> list[Publish]:
        """Every PUBLISH, of all connections, in the order it was read."""
        with self._changed:
            return list(self._published)

    @property
    def topics(self) -> list[str]:
        """Those of `published`."""
        return [publish.topic for publish in self.published]

    @property
    def pubacks(self) -> list[tuple[int, int]]:
        """The client's PUBACKs: number of the connection, packet identifier."""
        with self._changed:
            return list(self._pubacks)

    @property
    def goodbyes(self) -> list[int]:
        """The connections that ended with a DISCONNECT of the client."""
        with self._changed:
            return list(self._goodbyes)

    def wait(self, until: Callable[[Self], bool]) -> None:
        """Wait until something that the broker has noted makes it true."""
        deadline = time.monotonic() + PATIENCE_S
        with self._changed:
            while not until(self):
                assert self._changed.wait(deadline - time.monotonic()), f"did not happen: {self._published[-5:]}"

    def note_connect(self, connect: Connect) -> None:
        with self._noting():
            self._connects.append(connect)

    def note_publish(self, publish: Publish) -> None:
        with self._noting():
            self._published.append(publish)

    def note_puback(self, connection: int, mid: int) -> None:
        with self._noting():
            self._pubacks.append((connection, mid))

    def note_goodbye(self, connection: int) -> None:
        with self._noting():
            self._goodbyes.append(connection)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        with self._changed:
            yield
            self._changed.notify_all()

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            number += 1
            if self._tls is not None:  # the handshake comes with the first packet, in the session's thread
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            script = self._scripts[min(number, len(self._scripts)) - 1]
            thread = threading.Thread(target=self._run, args=(script, sock, number), name=f"scripted-{number}")
            self._sockets.append(sock)
            self._threads.append(thread)
            thread.start()

    def _run(self, script: Script, sock: socket.socket, number: int) -> None:
        with sock:
            sock.settimeout(PATIENCE_S)
            try:
                script(Session(self, sock, number))
            except (EOFError, ConnectionError):
                pass  # the client has gone, or the test is over
            except BaseException as error:  # noqa: BLE001 - raised again where the test can see it
                self._failures.append(error)
            # shutdown, that the client sees the end even where it has sent what was never read
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
