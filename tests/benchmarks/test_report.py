"""What a run tells people and programs, and that one failure does not take the rest with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from benchmarks import report, serving
from benchmarks.figures import BenchmarkError
from benchmarks.outcome import Outcome, Table, Verdict
from benchmarks.report import Run
from benchmarks.scenarios import (
    cancel,
    crowd,
    death,
    highlevel,
    journal,
    memory,
    mixed,
    neighbours,
    overhead,
    soak,
    ttft,
)
from benchmarks.scene import Scene
from tests.benchmarks.test_rates import outcome as throughput_outcome
from tests.benchmarks.test_rates import repeat

MIB = 2**20
MEMORY = (250 * MIB, 300 * MIB, 252 * MIB)

#: One of each scenario, with figures that are as asked.
GOOD: dict[str, Outcome] = {
    "throughput": throughput_outcome(repeat(95), repeat(96, streams=8), repeat(97, streams=16)),
    "crowd": crowd.Crowd({"Q4_1": crowd.Rates([100.0, 104.0], [101.0, 105.0])}),
    "overhead": overhead.Overhead({1: overhead.Steps([10.0, 10.0], [0.2, 0.4]), 8: overhead.Steps([40.0], [1.0])}),
    "ttft": ttft.Ttft(
        65,
        [ttft.Pairs(1, [112.0, 114.0], [100.0, 101.0]), ttft.Pairs(65, [105.0], [100.0])],
        *(527, [1000.0, 1100.0], [90.0, 100.0], [512, 510]),
    ),
    "mixed": mixed.Mixed(
        {"Q4_1": [mixed.Round(1499, [20.0, 20.0, 24.0], [25.0, 48.0], [48.0], 6000.0, 4000.0, 6100.0, MEMORY)]}
    ),
    "cancel": cancel.CancelLatency([40.0, 90.0], [251, 300], 1997, 4),
    "memory": memory.Memory(
        90 * MIB,
        80 * MIB,
        {"the streams": {"daemon": 50 * MIB, "engine": 240 * MIB}},
        60.0,
        {"engine": 0.001, "daemon": 0.002, "broker": 0.001},
    ),
    "soak": soak.Soak(200, 20, [], 10.0, {"daemon": MIB, "engine": MIB}, {"daemon": MIB, "engine": MIB}),
    "death": death.Death({"SIGKILL": death.Case(8, [], 8, 1.5, 9.0)}),
    "journal": journal.Cost([99.0, 100.0], [100.0, 99.0], 100.0, 25.0),
    "neighbours": neighbours.Neighbours(
        [neighbours.Case(1, 4, [50.0], [52.0]), neighbours.Case(1, 1, [40.0, 44.0], [4.0, 4.2])]
    ),
    "highlevel": highlevel.HighLevel(160, [highlevel.Side(160.0, 130.0, 100.0)], [highlevel.Side(155.0, 140.0, 180.0)]),
}


def run(**outcomes: Outcome) -> Run:
    return Run("a machine", "a.gguf", {"threads": 2}, dict(outcomes))


def test_there_is_an_example_of_every_scenario() -> None:
    assert GOOD.keys() == serving.SCENARIOS.keys()


def test_of_the_mixed_load_the_median_of_the_rounds_counts() -> None:
    rounds = [
        mixed.Round(1499, [20.0], [longest], [longest], prefill_ms, 4000.0, 1.0, MEMORY)
        for longest, prefill_ms in ((48.0, 9000.0), (49.0, 6000.0), (90.0, 6300.0))
    ]
    assert [one.measured for one in mixed.Mixed({"Q4_1": rounds}).verdicts()] == [49 / 20, 6300 / 4000]


@pytest.mark.parametrize("name", GOOD)
def test_figures_as_asked_are_said_to_be(name: str) -> None:
    assert [str(verdict) for verdict in GOOD[name].verdicts() if not verdict.met] == []
    told = report.text(run(**{name: GOOD[name]}))
    assert "MISSED" not in told
    assert f"({name})" in told


@pytest.mark.parametrize("name", GOOD)
def test_every_row_is_as_long_as_its_head(name: str) -> None:
    for table in GOOD[name].tables():
        assert {len(row) for row in table.rows} == {len(table.head)}


@pytest.mark.parametrize(
    ("outcome", "missed"),
    [
        (overhead.Overhead({1: overhead.Steps([10.0], [0.6])}), 1),
        (crowd.Crowd({"Q4_1": crowd.Rates([100.0], [99.0]), "Q4_0": crowd.Rates([100.0], [101.0])}), 1),
        (journal.Cost([95.0], [100.0], 1000.0, 25.0), 2),
        (neighbours.Neighbours([neighbours.Case(1, 1, [40.0], [44.0])]), 1),
        (ttft.Ttft(65, [ttft.Pairs(1, [120.0], [100.0])], 527, [1000.0], [300.0], [0]), 2),
        (mixed.Mixed({"Q4_1": [mixed.Round(1499, [20.0], [51.0], [51.0], 6500.0, 4000.0, 1.0, MEMORY)]}), 2),
        (cancel.CancelLatency([40.0, 151.0], [251], 1997, 4), 1),
        (
            memory.Memory(
                MIB, MIB, {"it": {"daemon": 0, "engine": 83 * MIB}}, 60.0, {"engine": 0.004, "daemon": 0.002}
            ),
            2,
        ),
        (soak.Soak(200, 20, ["lost"], 10.0, {}, {}), 1),
        (death.Death({"SIGKILL": death.Case(8, ["request r1 ended with internal"], 7, None, None)}), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Outcome) else "",
)
def test_figures_that_are_worse_than_asked_are_missed(outcome: Outcome, missed: int) -> None:
    assert sum(not verdict.met for verdict in outcome.verdicts()) == missed


def test_a_verdict_says_what_was_asked_and_what_came() -> None:
    assert str(Verdict("latency", 12.34, 150, "ms")) == "met: latency. Asked: <= 150 ms; measured: 12.3 ms"
    assert str(Verdict("ratio", 0.85, 0.9, least=True)) == "MISSED: ratio. Asked: >= 0.9; measured: 0.85"


def test_a_table_is_markdown() -> None:
    assert Table("What", ["a", "long"], [["12", "3"]]).lines() == [
        "What",
        "",
        "|  a | long |",
        "| -: | ---: |",
        "| 12 |    3 |",
    ]


def test_programs_get_all_figures_and_verdicts() -> None:
    told = json.loads(report.to_json(run(**GOOD)))
    assert told["scenarios"].keys() == GOOD.keys()
    assert told["scenarios"]["cancel"]["figures"]["latency_ms"] == [40.0, 90.0]
    assert told["scenarios"]["cancel"]["verdicts"][0] == {
        "what": "longest time from cancel to the final",
        "measured": 90.0,
        "most": 150.0,
        "unit": "ms",
        "met": True,
    }
    assert "least" in told["scenarios"]["throughput"]["verdicts"][0]


def test_the_picture_has_a_panel_for_each_scenario(tmp_path: Path) -> None:
    file = tmp_path / "run.png"
    report.plot(run(**GOOD), file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_scenario_that_fails_is_reported_and_the_rest_goes_on() -> None:
    def fails(_scene: Scene) -> Outcome:
        raise BenchmarkError("no answer came")

    def breaks(_scene: Scene) -> Outcome:
        raise ZeroDivisionError("division by zero")

    def gives(outcome: Outcome) -> Callable[[Scene], Outcome]:
        return lambda _scene: outcome

    told = run()
    quick = cast("Scene", type("Quick", (), {"quick": True})())
    scenarios = {"cancel": fails, "mixed": breaks, "soak": gives(GOOD["soak"])}
    serving.carry_out(scenarios, quick, told)
    assert told.failures == {"cancel": "no answer came", "mixed": "ZeroDivisionError: division by zero"}
    assert list(told.outcomes) == ["soak"]
    text = report.text(told)
    assert "## FAILED: cancel\n\nno answer came" in text
    assert text.endswith("3 of 3 figures are as asked; 2 scenarios failed.")
