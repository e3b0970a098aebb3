"""What paho reports, and a paho client that reports it.

Its callbacks only take notes: nothing of ours can fail inside of them, and the notes are read when no lock of paho's is
held.
"""

from __future__ import annotations

import ssl
from collections import deque
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from paho.mqtt.client import Client as Paho
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edged.client.settings import Settings, random_name


@dataclass(frozen=True, slots=True)
class Connected:
    """CONNACK."""

    code: ReasonCode
    properties: Properties | None


@dataclass(frozen=True, slots=True)
class Subscribed:
    """SUBACK."""

    mid: int
    codes: list[ReasonCode]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """PUBACK."""

    mid: int
    code: ReasonCode


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The end, by a DISCONNECT of the broker's or otherwise."""

    code: ReasonCode
    by_broker: bool


Note: TypeAlias = Connected | Subscribed | Confirmed | Disconnected | MQTTMessage


class Tls:
    """A TLS context that remembers its socket: paho forgets, and so never closes, that of a handshake that fails."""

    def __init__(self, context: ssl.SSLContext) -> None:
        """Wrap a context, which is left as it is."""
        self._context = context
        self._socket: ssl.SSLSocket | None = None

    @property
    def check_hostname(self) -> bool:
        """As the context's; paho asks."""
        return self._context.check_hostname

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """As the context's."""
        self._socket = self._context.wrap_socket(*args, **kwargs)
        return self._socket

    def close(self) -> None:
        """Close the socket, if there is one and it is open."""
        if self._socket is not None:
            self._socket.close()


def paho_client(settings: Settings, notes: deque[Note]) -> tuple[Paho, Tls | None]:
    """A paho client that takes notes and never reconnects, and its TLS, to be closed after it.

    The callbacks do not know the connection, so that no cycle of references keeps sockets open.
    """
    paho = Paho(
        CallbackAPIVersion.VERSION2,
        client_id=random_name("edged-"),  # 22 characters: MQTT 3.1.1 promises no more than 23
        protocol=MQTTProtocolVersion.MQTTv5 if settings.mqtt5 else MQTTProtocolVersion.MQTTv311,
        reconnect_on_failure=False,
    )
    paho.connect_timeout = settings.connect_timeout
    if settings.username is not None:
        paho.username_pw_set(settings.username, settings.password)
    tls = None
    if settings.tls:
        tls = Tls(settings.tls if isinstance(settings.tls, ssl.SSLContext) else ssl.create_default_context())
        paho.tls_set_context(cast("ssl.SSLContext", tls))
    paho.on_connect = lambda _c, _u, _flags, code, properties: notes.append(Connected(code, properties))
    paho.on_subscribe = lambda _c, _u, mid, codes, _properties: notes.append(Subscribed(mid, codes))
    paho.on_message = lambda _c, _u, message: notes.append(message)
    paho.on_publish = lambda _c, _u, mid, code, _properties: notes.append(Confirmed(mid, code))
    paho.on_disconnect = lambda _c, _u, flags, code, _properties: notes.append(
        Disconnected(code, flags.is_disconnect_packet_from_server)
    )
    return paho, tls
