"""Why a connection failed or ended, as sentences for operators."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from paho.mqtt.enums import MQTTErrorCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from edged.mqtt.settings import Settings

#: What to do about a reason code of CONNACK or DISCONNECT (MQTT 5.0, 2.4).
_ADVICE = {
    0x84: 'the broker does not speak this version of MQTT; try mqtt.version = "3.1.1"',
    0x85: "the broker does not take this client identifier",
    0x86: "check mqtt.username and mqtt.password_file",
    0x87: "check mqtt.username, mqtt.password_file and the broker's access rules",
    0x8E: "another client has connected under the same client identifier; every node needs a name of its own",
    0x95: "a message was larger than the broker takes",
    0x9A: "the broker keeps no retained messages, which the node's status card needs",
}


def unreachable(settings: Settings, error: OSError) -> str:
    """There was no TCP connection, or no TLS on it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of the broker at {settings.address} is not trusted: {error.verify_message}; "
            "check mqtt.host and mqtt.ca_file"
        )
    if isinstance(error, ssl.SSLError):
        return f"no TLS with the broker at {settings.address}: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return f"no connection to the broker at {settings.address} within {settings.connect_timeout_s:g} s"
    return f"no connection to the broker at {settings.address}: {error.strerror or error}"


def refused(settings: Settings, code: ReasonCode, properties: Properties | None) -> str:
    """CONNACK says no."""
    return f"the broker at {settings.address} refused the connection: {_text(code, properties)}"


def unsubscribed(settings: Settings, filters: Sequence[str], codes: Sequence[ReasonCode]) -> str | None:
    """SUBACK says no to some filter; None where it does not."""
    refusals = [f"{f!r} ({_name(code)})" for f, code in zip(filters, codes, strict=False) if code.is_failure]
    if len(codes) < len(filters):
        refusals += [f"{f!r} (no answer)" for f in filters[len(codes) :]]
    if not refusals:
        return None
    who = f"user {settings.username!r}" if settings.username else f"client {settings.client_id!r}"
    what = ", ".join(refusals)
    return f"the broker at {settings.address} refused the subscription to {what}; check its access rules for {who}"


def dismissed(settings: Settings, code: ReasonCode, properties: Properties | None) -> str:
    """The broker sent a DISCONNECT."""
    return f"the broker at {settings.address} ended the connection: {_text(code, properties)}"


def silent(settings: Settings, seconds: float, *, ready: bool) -> str:
    """Nothing was heard from the broker for too long."""
    what = "was silent" if ready else "accepted the connection and did not answer"
    return f"the broker at {settings.address} {what} for {seconds:g} s"


def lost(settings: Settings, code: MQTTErrorCode, *, ready: bool) -> str:
    """The connection ended without a word."""
    if code == MQTTErrorCode.MQTT_ERR_PROTOCOL:
        hint = "" if ready else f"; check mqtt.port, and mqtt.version, which is {settings.version}"
        return f"the broker at {settings.address} sent what is not MQTT{hint}"
    when = "" if ready else " before it answered"
    return f"the connection to the broker at {settings.address} was closed{when}"


def unreadable(settings: Settings, error: Exception) -> str:
    """The MQTT library could not cope with what came."""
    return f"what the broker at {settings.address} sent could not be read: {type(error).__name__}: {error}"


def _text(code: ReasonCode, properties: Properties | None) -> str:
    parts = [_name(code), getattr(properties, "ReasonString", ""), _ADVICE.get(code.value, "")]
    return "; ".join(part for part in parts if part)


def _name(code: ReasonCode) -> str:
    return f"{code} (0x{code.value:02X})"
