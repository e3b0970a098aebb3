"""edged: a language model on your own machine, reachable over MQTT.

Consumers find `Client`, `AsyncClient` and their errors here; everything loads on first use, because the engine's
child process imports this package too and has to stay small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edged.client import AsyncClient, Client

__version__ = "0.1.0"

__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the public classes when they are first asked for (PEP 562)."""
    if name in {"AsyncClient", "Client"}:
        from edged import client  # noqa: PLC0415 - the point of this function

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
