"""What other threads ask of a connection's own thread."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from edged.client.inbox import Inbox
from edged.wire.stream import Missing


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One request's topics, and where its replies go."""

    id: str
    node: str
    request_topic: str
    control_topic: str
    inbox: Inbox


@dataclass(frozen=True, slots=True)
class Send:
    """Publish a request, and take in what answers it."""

    route: Route
    payload: bytes


@dataclass(frozen=True, slots=True)
class Cancel:
    """Publish `cancel` for a request, and go on taking in its replies."""

    route: Route


@dataclass(frozen=True, slots=True)
class Replay:
    """Ask for what is missing of a reply."""

    route: Route
    missing: Missing


@dataclass(frozen=True, slots=True)
class Leave:
    """Take in nothing more; publish `cancel` unless the request has ended."""

    route: Route
    ended: bool


@dataclass(frozen=True, slots=True)
class Watch:
    """Call `wake` at every change of the connection or of a status card; with `on` False, no longer."""

    wake: Callable[[], None]
    on: bool = True


@dataclass(frozen=True, slots=True)
class Shut:
    """Cancel what is running, and disconnect."""


Command = Send | Cancel | Replay | Leave | Watch | Shut


def replay(missing: Missing) -> bytes:
    """The control message that asks for it (docs/protocol.md, section 6)."""
    return json.dumps(
        {"op": "replay", "from_seq": missing.from_seq} | ({"gen": missing.gen} if missing.gen else {})
    ).encode()
