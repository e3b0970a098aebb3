"""Hypothesis's part in a siege: it thinks batches up, and makes a fatal one as small as can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

from tests.fuzz.publishes import Message, batches, versions
from tests.fuzz.siege import Siege


def campaign(siege: Siege, *, count: int, number: int, more: Callable[[], bool] = lambda: True) -> None:
    """Fire batches.

    Args:
        siege: where they go.
        count: so many batches.
        number: the same number thinks the same batches up.
        more: asked before each; once it says no, the rest is passed over.

    Raises:
        SiegeError: a batch did the node harm; what is left of it after shrinking stands in the error's notes.
    """

    @settings(
        deadline=None,
        database=None,
        max_examples=count,
        # A batch is large, and is meant to be.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @seed(number)
    @given(batches, versions)
    def fire(messages: list[Message], version: int) -> Any:
        if more():
            siege.fire(messages, version=version)

    fire()
