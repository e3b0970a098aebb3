"""How a client reaches its broker and node, and how long it waits."""

from __future__ import annotations

import secrets
import ssl
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from edged.wire.topics import DEFAULT_ROOT, Kind, Topics, is_id

Version = Literal[5, "5", "3.1.1"]

#: The longest keep alive that MQTT can say, seconds (MQTT 5.0, 3.1.2.10).
_MAX_KEEPALIVE = 65535
#: What has to be more than zero, where it is given.
_POSITIVE = (
    "connect_timeout",
    "discovery_timeout",
    "accept_timeout",
    "timeout",
    "gap_timeout",
    "away_timeout",
    "buffer_bytes",
)


class Options(TypedDict, total=False):
    """The keywords of `Client` and `AsyncClient`; `Settings` says what they mean."""

    host: str
    port: int | None
    node: str | None
    client: str | None
    username: str | None
    password: str | None
    tls: ssl.SSLContext | bool
    topic_root: str
    version: Version
    keepalive: int
    connect_timeout: float
    discovery_timeout: float
    accept_timeout: float | None
    timeout: float | None
    gap_timeout: float
    away_timeout: float
    buffer_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that a client is told once. Times are in seconds.

    Attributes:
        host: the broker's name or address.
        port: its port; None = 1883, with TLS 8883.
        node: the node's name; None = the one whose status card is seen, if it is the only one that lives.
        client: the CLIENT level of the topics, for ACLs and fair shares; None = a random one.
        username: for the broker.
        password: for the broker.
        tls: True = verified against the system's certificates; or a context of your own.
        topic_root: as the daemon's setting `mqtt.topic_root`.
        version: of MQTT.
        keepalive: a silent broker counts as gone after about twice this.
        connect_timeout: from the first packet to being connected and subscribed.
        discovery_timeout: how long to look for status cards when no node is named.
        accept_timeout: how long a request may stay without any answer: a streamed one without its `accepted`, an
            `ask` without as much as a status card of its node. None = as long as `timeout`.
        timeout: the whole exchange, where the request has no `timeout_s` of its own. None = without end.
        gap_timeout: how long to wait for what is missing once the final is there; then it is asked for, and waited for
            once more.
        away_timeout: how long to wait for a node that went `lost` or `offline` before it had answered: it goes on where
            it was when it is back.
        buffer_bytes: how much of one stream may wait to be read; above it the request is cancelled.
    """

    host: str = "localhost"
    port: int | None = None
    node: str | None = None
    client: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | bool = False
    topic_root: str = DEFAULT_ROOT
    version: Version = 5
    keepalive: int = 30
    connect_timeout: float = 5.0
    discovery_timeout: float = 2.0
    accept_timeout: float | None = 10.0
    timeout: float | None = 600.0
    gap_timeout: float = 2.0
    away_timeout: float = 30.0
    buffer_bytes: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse at once what could only fail later.

        Raises:
            ValueError: a value that cannot work; the message names it. `TopicError` is one.
        """
        if not _is_host(self.host):
            raise ValueError(f"host {self.host!r} is no host: give the broker's name or address")
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port {self.port} is none: use 1 to 65535")
        if self.client is not None and not is_id(self.client):
            raise ValueError(f"client {self.client!r} cannot be a topic level: use 1 to 64 of A-Z a-z 0-9 _ . -")
        if self.version not in (5, "5", "3.1.1"):
            raise ValueError(f"version {self.version!r} is not spoken here: use 5 or '3.1.1'")
        if self.password is not None and self.username is None:
            raise ValueError("a password needs a username beside it")
        if not 0 < self.keepalive <= _MAX_KEEPALIVE:
            raise ValueError(f"keepalive {self.keepalive} is out of bounds: use 1 to {_MAX_KEEPALIVE} seconds")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} {value} must be more than 0")
        Topics(self.node or "any", self.topic_root)  # refuses both by its own words

    @property
    def mqtt5(self) -> bool:
        """Whether MQTT 5 is spoken, not 3.1.1."""
        return self.version != "3.1.1"

    @property
    def tcp_port(self) -> int:
        """The port to connect to."""
        if self.port is not None:
            return self.port
        return 8883 if self.tls else 1883

    @property
    def broker(self) -> str:
        """`host:port`, for messages."""
        return f"{self.host}:{self.tcp_port}"

    def status_filter(self) -> str:
        """The subscription to the node's status card, or to all of them."""
        return f"{self.topic_root}/{self.node or '+'}/{Kind.STATUS}"

    def reply_filter(self, client: str) -> str:
        """The one subscription that takes in the replies to all requests of a client."""
        return f"{self.topic_root}/{self.node or '+'}/{Kind.REPLY}/{client}/+"


def _is_host(host: str) -> bool:
    """Whether a host name can be looked up at all."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def random_name(prefix: str = "") -> str:
    """A name that nobody else has, for the levels of a topic: `prefix` and 16 hexadecimal digits."""
    return prefix + secrets.token_hex(8)
