"""The simulation finds what is broken: each of these daemons breaks a promise in one of a few hundred worlds."""

from __future__ import annotations

import pytest

from tests.simulation.broken import BROKEN
from tests.simulation.world import World

#: So many worlds each of them has to show its defect in.
_SEEDS = 800


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_daemon_is_found_out_of_which_it_is_true_that(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BROKEN[name](monkeypatch)
    for seed in range(_SEEDS):
        try:
            World(seed).run()
        except Exception:  # noqa: BLE001 - broken as it is, it may fail in any way
            monkeypatch.undo()
            World(seed).run()  # it was the defect, and nothing else
            return
    pytest.fail(f"nothing was found in {_SEEDS} worlds: {name}")
