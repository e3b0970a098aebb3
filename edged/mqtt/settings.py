"""What a connection needs to know; the operator's defaults and bounds are `edged.config`'s."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self


class TlsError(ValueError):
    """A certificate or key cannot be used; the message names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Whom to trust and who to be. The broker's certificate and host name are always verified.

    Attributes:
        ca_file: authorities that vouch for the broker, PEM; None for the system's own.
        cert_file: certificate of this node, PEM, where the broker asks for one.
        key_file: its private key, PEM, without a passphrase.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Read the files.

        Raises:
            TlsError: one of them is missing, unreadable, or not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise TlsError(f"the authorities in {str(self.ca_file)!r} cannot be used: {_why(error)}") from None
        context.sslsocket_class = _Socket
        if self.cert_file is not None:
            try:
                # Without a password OpenSSL would ask for one at the terminal; a wrong one is an error.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
            except OSError as error:
                pair = f"{str(self.cert_file)!r} with key {str(self.key_file)!r}"
                raise TlsError(f"the certificate {pair} cannot be used: {_why(error)}") from None
        return context


class _Socket(ssl.SSLSocket):
    """paho forgets the socket of a handshake that fails; here it is closed at once."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _why(error: OSError) -> str:
    """OpenSSL's reason without its file and line; it has none for a file that is not PEM."""
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return reason or "it is not PEM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One broker, and how to treat it.

    Attributes:
        host: name or address of the broker.
        port: its TCP port.
        client_id: the MQTT client identifier; the broker throws an older connection of the same one out.
        keepalive_s: how long either side may be silent before it is asked whether it lives. A broker that is not heard
            of for one and a half times as long is given up.
        version: of MQTT.
        username: for the broker; None for none.
        password: for the user name.
        tls: how to encrypt; None for plain TCP.
        connect_timeout_s: for the TCP connection, for the TLS handshake, and then for CONNACK and SUBACK together.
        backoff_min_s: the pause after the first failure, doubled by every further one, of which a random part is taken.
        backoff_max_s: the longest pause.
        steady_s: a connection that held so long starts the pauses from the shortest again.
        session_expiry_s: how long the broker keeps the session after a connection has ended, in order or not: it
            delivers on the next one what comes meanwhile at QoS 1, and again what was not acknowledged. 0 = each
            connection begins anew. In 3.1.1 there is no such figure: all but 0 means until the broker forgets.
        receive_maximum: how many unacknowledged QoS 1 messages the broker may send, 1 to 65535. MQTT 5 only.
        maximum_packet: the largest packet the broker may send, bytes; it bounds the memory that a stranger's message
            can take. The broker drops what is larger and tells nobody (MQTT 5.0, 3.1.2.11.4), so this is far over the
            largest request that is served: a mistake still gets its `too_large`. There is another reason: Mosquitto
            (2.0.11 was seen, 2.1 reads the same) does not give the place in the window back, and after it has dropped
            `receive_maximum` messages it sends no more at QoS 1 until the next connection. MQTT 5 only: in 3.1.1 there
            is nothing but the broker's own limit.
        window: the most messages on their way to the broker and not confirmed; its own Receive Maximum counts if less.
        outbox: QoS 0 messages are refused while so many messages wait. Those of QoS 1 are the core's to bound.
    """

    host: str
    port: int
    client_id: str
    keepalive_s: int
    version: Literal[5, "3.1.1"] = 5
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    connect_timeout_s: float = 10.0
    backoff_min_s: float = 0.5
    backoff_max_s: float = 60.0
    steady_s: float = 30.0
    session_expiry_s: int = 0
    receive_maximum: int = 64
    maximum_packet: int = 16 * 1024 * 1024
    window: int = 20
    outbox: int = 10_000

    def __post_init__(self) -> None:
        """Refuse what would fail only later, or on every attempt."""
        for name, least, most in (
            ("port", 1, 65535),
            ("keepalive_s", 1, 65535),
            ("session_expiry_s", 0, 4_294_967_295),
            ("receive_maximum", 1, 65535),
            ("maximum_packet", 1024, 268_435_455),
            ("window", 1, 65535),
            ("outbox", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}; it has to be between {least} and {most}")

    @property
    def address(self) -> str:
        """The broker, as people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def checked(self) -> Self:
        """Read the TLS files once, so that a wrong one is told at the start and not with every attempt.

        Raises:
            TlsError: one cannot be used.
        """
        if self.tls is not None:
            self.tls.context()
        return self
