"""The promises of docs/protocol.md, section 8, in thousands of seeded worlds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation.plan import FAULTS
from tests.simulation.world import World, run

_CHUNKS, _SEEDS = 20, 100


@pytest.mark.parametrize("chunk", range(_CHUNKS))
def test_what_is_accepted_is_answered_once_and_whole_whatever_breaks(chunk: int) -> None:
    failed = {}
    for seed in range(chunk * _SEEDS, (chunk + 1) * _SEEDS):
        try:
            run(seed)
        except Exception as error:  # noqa: BLE001 - whatever went wrong there, the seed is what is wanted
            failed[seed] = f"{type(error).__name__}: {error}"
    shown = "\n".join(f"python -m tests.simulation --seed {seed}  # {why}" for seed, why in failed.items())
    assert not failed, f"{len(failed)} of {_SEEDS} worlds break a promise:\n{shown}"


_TRACE = "from tests.simulation.world import run; print(*run(9, trace=True).checks.trace, sep='\\n')"


def test_a_seed_plays_the_same_way_again_in_any_process() -> None:
    def trace(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", _TRACE]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout

    one, other = trace("1"), trace("2")
    assert one.count("\n") > 100
    assert one == other


def test_all_kinds_of_faults_happen_and_most_answers_are_whole_nevertheless() -> None:
    """A simulation in which nothing happens, or everything is cancelled, would find nothing."""
    faults: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    generations = resumed = 0
    for seed in range(120):
        world = World(seed, trace=True)
        world.run()
        assert world.checks.trace is not None
        faults += Counter(line.split("fault: ")[1] for line in world.checks.trace if "fault: " in line)
        for consumer in world.consumers:
            for asked in consumer.asked.values():
                for heard in asked.heard.values():
                    if heard.result is not None:
                        final = heard.result.final
                        endings[str(final.error.code) if final.error else final.finish_reason] += 1
                        generations += final.gen > 1
                        resumed += final.metrics is not None and final.metrics.resumed > 0
    assert set(faults) == set(FAULTS)
    assert endings["stop"] > endings.total() / 2
    assert min(endings[name] for name in ("stop", "length", "cancelled", "timeout", "crashed")) >= 5, endings
    assert generations >= 5
    assert resumed >= 20
