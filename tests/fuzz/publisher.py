"""Sends PUBLISHes byte by byte as they are wanted: clients have scruples."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator

from tests.fuzz.publishes import Message
from tests.mqtt.packets import CONNECT, DISCONNECT, PINGREQ, PINGRESP, PUBLISH, packet

_PATIENCE_S = 30.0


def publish(host: str, port: int, base: str, messages: Iterable[Message], *, version: int, client_id: str = "") -> bool:
    """Connect, publish, and wait until the broker has taken everything in.

    Args:
        host: of the broker.
        port: of the broker.
        base: what goes before each topic, without a slash at its end.
        messages: in this order.
        version: of MQTT: 4 is 3.1.1.
        client_id: whose session ends with it, if the broker keeps one.

    Returns:
        Whether the broker put up with it; else it hung up, and the rest did not get through.
    """
    with socket.create_connection((host, port), _PATIENCE_S) as sock, sock.makefile("rb") as incoming:
        five = version == 5
        hello = _text("MQTT") + bytes([version, 2, 0, 0]) + (b"\0" if five else b"") + _text(client_id)
        with contextlib.suppress(ConnectionError):
            sock.sendall(packet(CONNECT, 0, hello))
            for raw in _packets(base, messages, five=five):
                sock.sendall(raw)
            sock.sendall(packet(PINGREQ, 0))
            while (kind := _read(incoming)) is not None:
                if kind == PINGRESP:
                    sock.sendall(packet(DISCONNECT, 0))
                    return True
    return False


def _read(incoming: object) -> int | None:
    """Pass over a packet; its type, or None at the end."""
    read = incoming.read  # type: ignore[attr-defined]  # a BufferedReader, which typeshed gives no name to import
    if not (first := read(1)):
        return None
    length = shift = 0
    while byte := read(1):
        length |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            break
    read(length)
    return int(first[0] >> 4)


def _packets(base: str, messages: Iterable[Message], *, five: bool) -> Iterator[bytes]:
    aliases: dict[int, str] = {}
    for mid, message in enumerate(messages, 1):
        topic = f"{base}/{message.topic}"
        # A topic that the broker knows by its alias already goes without its name.
        known = five and message.alias is not None and aliases.get(message.alias) == topic
        body = _text("" if known else topic)
        if message.qos:
            body += struct.pack("!H", mid)
        if five:
            properties = b"".join(_properties(message))
            body += _length(len(properties)) + properties
            if message.alias is not None:
                aliases[message.alias] = topic
        yield packet(PUBLISH, message.qos << 1 | message.retain, body + message.payload)


def _properties(message: Message) -> Iterator[bytes]:
    """MQTT 5.0, 3.3.2.3."""
    if message.utf8 is not None:
        yield bytes([1, message.utf8])
    if message.expiry is not None:
        yield struct.pack("!BI", 2, message.expiry)
    if message.content_type is not None:
        yield b"\x03" + _text(message.content_type)
    if message.response_topic is not None:
        yield b"\x08" + _text(message.response_topic)
    if message.correlation is not None:
        yield b"\x09" + _binary(message.correlation)
    if message.alias is not None:
        yield struct.pack("!BH", 35, message.alias)
    for name, value in message.user:
        yield b"\x26" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    return _binary(text.encode())


def _binary(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


def _length(value: int) -> bytes:
    """A variable byte integer (MQTT 5.0, 1.5.5): that of a packet without a body of its own."""
    return packet(0, 0, bytes(value))[1 : -value or None]
