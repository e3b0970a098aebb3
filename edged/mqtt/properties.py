"""MQTT 5 properties, between the core's words and paho's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

if TYPE_CHECKING:
    from edged.core.events import Properties

CONTENT_TYPE = "application/json"


class Encoded(PahoProperties):
    """Properties that are put into bytes once: paho does it for every message, which costs as much as all the rest."""

    def __init__(self, properties: PahoProperties) -> None:
        super().__init__(properties.packetType)  # type: ignore[no-untyped-call]  # paho's properties have no types
        packed = properties.pack()  # type: ignore[no-untyped-call]
        object.__setattr__(self, "_packed", packed)  # paho's own __setattr__ takes names of properties only

    def pack(self) -> bytes:
        """What goes into the packet."""
        packed: bytes = object.__getattribute__(self, "_packed")
        return packed


def encode(properties: Properties, packet_type: int = PacketTypes.PUBLISH) -> Encoded:
    """The properties of a PUBLISH, or of the will (`PacketTypes.WILLMESSAGE`). Costs more than publishing: keep it."""
    encoded = _empty(packet_type)
    encoded.ContentType = CONTENT_TYPE
    encoded.PayloadFormatIndicator = 1
    if properties.expiry_s is not None:
        encoded.MessageExpiryInterval = properties.expiry_s
    if properties.correlation is not None:
        encoded.CorrelationData = properties.correlation
    return Encoded(encoded)


def for_connect(receive_maximum: int, maximum_packet: int, session_expiry_s: int) -> PahoProperties:
    """The properties of a CONNECT; the arguments are `Settings`'."""
    connect = _empty(PacketTypes.CONNECT)
    if session_expiry_s:
        connect.SessionExpiryInterval = session_expiry_s
    connect.ReceiveMaximum = receive_maximum
    connect.MaximumPacketSize = maximum_packet
    return connect


def _empty(packet_type: int) -> PahoProperties:
    return PahoProperties(packet_type)  # type: ignore[no-untyped-call]  # paho's properties have no types


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker says in its CONNACK that it can do (MQTT 5.0, 3.2.2.3); by default what 3.1.1 takes for granted.

    Attributes:
        receive_maximum: unacknowledged QoS 1 and 2 messages that it takes.
        maximum_packet: bytes of the largest packet it takes; None where it says nothing.
        maximum_qos: of a PUBLISH.
        retain: whether it keeps retained messages.
    """

    receive_maximum: int = 65535
    maximum_packet: int | None = None
    maximum_qos: int = 2
    retain: bool = True

    @classmethod
    def of(cls, connack: PahoProperties | None) -> Self:
        """Read them from a CONNACK."""
        return cls(
            receive_maximum=getattr(connack, "ReceiveMaximum", 65535),
            maximum_packet=getattr(connack, "MaximumPacketSize", None),
            maximum_qos=getattr(connack, "MaximumQoS", 2),
            retain=bool(getattr(connack, "RetainAvailable", 1)),
        )


def packet_size(topic: str, payload: bytes, qos: int, properties: Encoded | None) -> int:
    """Bytes of a whole PUBLISH packet (MQTT 5.0, 3.3); `properties` is None in MQTT 3.1.1."""
    packed = properties.pack() if properties else b""
    remaining = 2 + len(topic.encode()) + (2 if qos else 0) + len(packed) + len(payload)
    length_bytes = 1 + (remaining > 127) + (remaining > 16_383) + (remaining > 2_097_151)
    return 1 + length_bytes + remaining
