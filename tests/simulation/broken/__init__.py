"""Daemons that are broken on purpose, each in one way: a simulation that lets one of them pass has no teeth."""

from __future__ import annotations

from tests.simulation.broken import kept, restarts, running
from tests.simulation.broken.registry import BROKEN

__all__ = ["BROKEN", "kept", "restarts", "running"]
