"""As much of MQTT 3.1.1 and 5 as a broker needs, written for the tests and apart from what they test."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = 1, 2, 3, 4, 8, 9, 12, 13, 14

#: Properties of CONNACK by name: identifier and struct format (MQTT 5.0, 2.2.2.2).
_PROPERTIES = {
    "receive_maximum": (33, "H"),
    "maximum_packet_size": (39, "I"),
    "maximum_qos": (36, "B"),
    "retain_available": (37, "B"),
    "server_keep_alive": (19, "H"),
}


@dataclass(frozen=True)
class Connect:
    version: int
    client_id: str
    clean_start: bool
    keepalive: int
    properties: bytes
    will: bool = False


@dataclass(frozen=True)
class Publish:
    connection: int
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    mid: int = 0
    properties: bytes = b""


@dataclass(frozen=True)
class Subscribe:
    mid: int
    filters: tuple[str, ...]
    options: tuple[int, ...]


class Reader:
    """Takes a packet's body apart."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._body) - self._at

    def take(self, count: int) -> bytes:
        part = self._body[self._at : self._at + count]
        assert len(part) == count, "packet too short"
        self._at += count
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def text(self) -> str:
        return self.take(self.number(2)).decode()

    def properties(self) -> bytes:
        length = shift = 0
        while True:
            byte = self.number(1)
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return self.take(length)


@dataclass
class Codec:
    """Reads and writes packets in the version of MQTT that CONNECT names."""

    version: int = field(default=5)

    @property
    def five(self) -> bool:
        return self.version == 5

    def connect(self, body: bytes) -> Connect:
        reader = Reader(body)
        assert reader.text() == "MQTT"
        self.version = reader.number(1)
        flags, keepalive = reader.number(1), reader.number(2)
        properties = reader.properties() if self.five else b""
        return Connect(self.version, reader.text(), bool(flags & 2), keepalive, properties, bool(flags & 4))

    def publish(self, connection: int, flags: int, body: bytes) -> Publish:
        reader = Reader(body)
        topic, qos = reader.text(), flags >> 1 & 3
        mid = reader.number(2) if qos else 0
        properties = reader.properties() if self.five else b""
        payload = reader.take(reader.left)
        return Publish(connection, topic, payload, qos, bool(flags & 1), bool(flags & 8), mid, properties)

    def subscribe(self, body: bytes) -> Subscribe:
        reader = Reader(body)
        mid = reader.number(2)
        if self.five:
            reader.properties()
        filters, options = [], []
        while reader.left:
            filters.append(reader.text())
            options.append(reader.number(1))
        return Subscribe(mid, tuple(filters), tuple(options))

    def make_connack(self, code: int, *, session_present: bool = False, **properties: int) -> bytes:
        packed = b"".join(
            struct.pack("!B" + _PROPERTIES[name][1], _PROPERTIES[name][0], value) for name, value in properties.items()
        )
        return packet(
            CONNACK, 0, bytes([session_present, code]) + (bytes([len(packed)]) + packed if self.five else b"")
        )

    def make_suback(self, mid: int, codes: list[int]) -> bytes:
        return packet(SUBACK, 0, struct.pack("!H", mid) + (b"\0" if self.five else b"") + bytes(codes))

    def make_puback(self, mid: int, code: int = 0) -> bytes:
        return packet(PUBACK, 0, struct.pack("!H", mid) + (bytes([code, 0]) if self.five and code else b""))

    def make_publish(self, topic: bytes, payload: bytes, *, qos: int = 0, mid: int = 0, dup: bool = False) -> bytes:
        body = struct.pack("!H", len(topic)) + topic + (struct.pack("!H", mid) if qos else b"")
        return packet(PUBLISH, dup << 3 | qos << 1, body + (b"\0" if self.five else b"") + payload)


def packet(kind: int, flags: int, body: bytes = b"") -> bytes:
    """A whole packet: type, flags, remaining length, body."""
    length, rest = b"", len(body)
    while True:
        rest, digit = divmod(rest, 128)
        length += bytes([digit | (128 if rest else 0)])
        if not rest:
            return bytes([kind << 4 | flags]) + length + body
