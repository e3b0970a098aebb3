"""Short storms over real parts: every kind of fault, and nothing lost or wrong. `make chaos` is the long one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faults import DEATHS_OF_THE_BROKER, KINDS
from tests.chaos.figures import Figures
from tests.chaos.storm import storm

pytestmark = [pytest.mark.model, pytest.mark.broker]
SEED = 5


def survived(directory: Path, **options: Any) -> Figures:
    """A storm in which every request gets one whole answer."""
    told: list[str] = []
    figures = storm(directory, seed=SEED, limit_s=120, tell=told.append, **options)
    explanation = "\n".join([*told, figures.table(), (directory / "storm.log").read_text()[-4000:]])
    assert figures.passed, explanation
    assert [one.finals for one in figures.exchanges] == [1] * options["requests"], explanation
    return figures


def test_as_long_as_the_broker_lives_consumers_ask_once_and_do_nothing(tmp_path: Path) -> None:
    kinds = [kind for kind in KINDS if kind not in DEATHS_OF_THE_BROKER]
    figures = survived(tmp_path, requests=40, faults=len(kinds), kinds=kinds, patience_s=math.inf)

    assert figures.faults == dict.fromkeys(kinds, 1)
    assert all((one.asked, one.replays) == (1, 0) for one in figures.exchanges)


def test_what_a_killed_broker_forgets_is_asked_for_again(tmp_path: Path) -> None:
    figures = survived(tmp_path, requests=20, faults=4, kinds=DEATHS_OF_THE_BROKER)

    assert figures.faults == dict.fromkeys(DEATHS_OF_THE_BROKER, 2)
