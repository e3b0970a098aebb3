"""Which measurements count, and that a reader is told when they say little."""

from __future__ import annotations

import json
from typing import cast

import pytest

from benchmarks import bench, report
from benchmarks.figures import Figures
from benchmarks.report import Repeat, Result


def figures(rate: float) -> Figures:
    node = {"node_ttft_ms": [9.0], "node_itl_ms": [9.0], "node_p95_itl_ms": [9.0], "node_max_itl_ms": [9.0]}
    return Figures(1.0, rate, rate / 2, 1, 60, ttft_ms=[50.0], later_ttft_ms=[60.0], gaps_ms=[10.0, 20.0], **node)


def repeat(node: float, *, bare: float = 100.0, streams: int = 4, others: float = 0.0) -> Repeat:
    cpus = {"engine": 1.9, "daemon": 0.04, "others": others, "bare_others": 0.0}
    return Repeat(streams, 8, figures(bare), figures(node), figures(node), cpus)


def result(*repeats: Repeat) -> Result:
    return Result("a machine", "a.gguf", {"threads": 2}, list(repeats))


def test_repeats_that_others_disturbed_do_not_count() -> None:
    told = result(repeat(90), repeat(30, others=1.0), repeat(92))
    assert told.ratio(4).median == pytest.approx(0.91)
    assert "In 1 of 3 repeats other processes used more than 0.1 processors (at most 1.00)" in report.text(told)
    assert "say little" not in report.text(told)


def test_where_all_were_disturbed_the_reader_is_warned() -> None:
    told = result(repeat(30, others=1.0), repeat(92, streams=8))
    assert told.ratio(4).median == pytest.approx(0.3)
    assert "1 were not, for want of better ones: their ratios say little." in report.text(told)


def test_a_quiet_machine_is_not_spoken_of() -> None:
    assert "other processes" not in report.text(result(repeat(90)))


def test_the_tables_show_each_number_of_streams() -> None:
    text = report.text(result(repeat(150, bare=160, streams=1), repeat(180, bare=200)))
    assert "| 160.0 | 150.0 | 0.938 (0.938 to 0.938) |" in " ".join(text.split())
    assert "| 200.0 | 180.0 | 0.900 (0.900 to 0.900) |" in " ".join(text.split())


def test_programs_get_everything() -> None:
    told = json.loads(report.to_json(result(repeat(90), repeat(30, others=1.0))))
    assert told["summary"][0]["ratio"]["median"] == pytest.approx(0.9)
    assert (told["summary"][0]["repeats"], told["summary"][0]["disturbed"]) == (1, 0)
    assert [one["processors"]["others"] for one in told["repeats"]] == [0.0, 1.0]
    assert told["repeats"][0]["edged"]["gaps_ms"] == {"p50": 15.0, "p95": 20.0, "most": 20.0, "count": 2}


class ScriptedBench:
    """Measures what it is told to."""

    def __init__(self, *measured: Repeat) -> None:
        self.measured = list(measured)
        self.orders: list[bool] = []

    def repeat(self, _streams: int, _tokens: int, *, bare_first: bool) -> Repeat:
        self.orders.append(bare_first)
        return self.measured.pop(0)


def turns(scripted: ScriptedBench, repeats: int, patience_s: float) -> list[Repeat]:
    return bench.take_turns(cast("bench.Bench", scripted), {4: 8}, repeats, patience_s)


def test_the_sides_take_turns_in_being_first() -> None:
    scripted = ScriptedBench(repeat(90), repeat(91), repeat(92))
    turns(scripted, 3, 0)
    assert scripted.orders == [True, False, True]


def test_what_was_disturbed_is_measured_again_while_patience_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "await_quiet", lambda _patience_s: None)
    disturbed, quiet = repeat(30, others=1.0), repeat(90)
    assert turns(ScriptedBench(disturbed, disturbed, quiet), 1, 60) == [quiet]
    assert turns(ScriptedBench(disturbed, quiet), 1, 0) == [disturbed]
