"""Which measurements of throughput count, and that a reader is told when they say little."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from benchmarks.figures import BenchmarkError, Figures, NeverTogetherError
from benchmarks.rates import Repeat, Series, Throughput
from benchmarks.scenarios import throughput


def figures(rate: float) -> Figures:
    node = {"node_ttft_ms": [9.0], "node_itl_ms": [9.0], "node_p95_itl_ms": [9.0], "node_max_itl_ms": [9.0]}
    return Figures(1.0, rate, rate / 2, 1, 60, ttft_ms=[50.0], later_ttft_ms=[60.0], gaps_ms=[10.0, 20.0], **node)


def repeat(node: float, *, bare: float = 100.0, streams: int = 4, others: float = 0.0) -> Repeat:
    cpus = {"engine": 1.9, "daemon": 0.04, "others": others, "bare": 1.8}
    return Repeat(streams, 8, figures(bare), figures(node), figures(node), cpus, {"engine": 0.125, "bare": 0.011})


def outcome(*repeats: Repeat) -> Throughput:
    return Throughput({"Q4_1": Series(repeats)})


def shown(told: Throughput) -> str:
    return " ".join(" ".join(line for table in told.tables() for line in table.lines()).split())


def test_repeats_that_others_disturbed_do_not_count() -> None:
    told = outcome(repeat(90), repeat(30, others=1.0), repeat(92))
    assert told.forms["Q4_1"].ratio(4).median == pytest.approx(0.91)
    assert "Others used the machine in 1 of 3 repeats; 1 of them were left out" in shown(told)
    assert "say little" not in shown(told)


def test_where_all_were_disturbed_the_reader_is_warned() -> None:
    told = outcome(repeat(30, others=1.0), repeat(92, streams=8))
    assert told.forms["Q4_1"].ratio(4).median == pytest.approx(0.3)
    assert "1 were not, for want of better ones: their ratios say little" in shown(told)


def test_a_quiet_machine_is_not_spoken_of() -> None:
    assert "Others used" not in shown(outcome(repeat(90)))


def test_the_tables_show_each_number_of_streams() -> None:
    text = shown(outcome(repeat(150, bare=160, streams=1), repeat(180, bare=200)))
    assert "| 160.0 | 150.0 | 0.938 (0.938 to 0.938) |" in text
    assert "| 200.0 | 180.0 | 0.9 (0.9 to 0.9) |" in text


def test_it_is_told_how_many_threads_had_no_processor() -> None:
    told = outcome(repeat(90))
    assert "| 0.125 | 0.011 |" in shown(told)
    assert told.record()["Q4_1"]["repeats"][0]["waiting"] == {"engine": 0.125, "bare": 0.011}


def test_where_the_kernel_does_not_tell_it_no_figure_is_made_up() -> None:
    told = outcome(replace(repeat(90), waits={}))
    assert "| - | - |" in shown(told)
    assert told.record()["Q4_1"]["repeats"][0]["waiting"] == {}


def test_programs_get_every_repeat_and_the_medians() -> None:
    told = outcome(repeat(90), repeat(30, others=1.0)).record()["Q4_1"]
    assert told["summary"][0]["ratio"]["median"] == pytest.approx(0.9)
    assert (told["summary"][0]["repeats"], told["summary"][0]["disturbed"]) == (1, 0)
    assert [one["processors"]["others"] for one in told["repeats"]] == [0.0, 1.0]
    assert told["repeats"][0]["edged"]["gaps_ms"] == {"p50": 15.0, "p95": 20.0, "most": 20.0, "count": 2}


def test_the_daemon_is_held_against_its_share() -> None:
    told = outcome(repeat(90, streams=8))
    verdicts = {verdict.what: verdict for verdict in told.verdicts()}
    assert verdicts["Q4_1: the daemon's own process at 8 streams"].measured == pytest.approx(0.04)


class ScriptedBench:
    """Measures what it is told to."""

    def __init__(self, *measured: Repeat | BenchmarkError) -> None:
        self.measured = list(measured)
        self.orders: list[bool] = []

    def repeat(self, _streams: int, _tokens: int, *, bare_first: bool) -> Repeat:
        self.orders.append(bare_first)
        measured = self.measured.pop(0)
        if isinstance(measured, BenchmarkError):
            raise measured
        return measured


def turns(scripted: ScriptedBench, repeats: int, patience_s: float) -> list[Repeat]:
    return list(throughput.measure_all(cast("throughput.Bench", scripted), {4: 8}, repeats, patience_s).repeats)


def test_the_sides_take_turns_in_being_first() -> None:
    scripted = ScriptedBench(repeat(90), repeat(91), repeat(92))
    turns(scripted, 3, 0)
    assert scripted.orders == [True, False, True]


def test_what_was_disturbed_is_measured_again_while_patience_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "await_quiet", lambda _patience_s: None)
    disturbed, quiet = repeat(30, others=1.0), repeat(90)
    assert turns(ScriptedBench(disturbed, disturbed, quiet), 1, 60) == [quiet]
    assert turns(ScriptedBench(disturbed, quiet), 1, 0) == [disturbed]


def test_streams_that_never_ran_together_cost_one_measurement_and_not_all() -> None:
    bench = ScriptedBench(NeverTogetherError("one stream ended early"), repeat(90))
    told = throughput.measure_all(cast("throughput.Bench", bench), {4: 8}, 2, 0)
    assert (len(told.repeats), told.lost) == (1, ("repeat 1, 4 streams: one stream ended early",))
    assert "one stream ended early" in shown(Throughput({"Q4_1": told}))
    with pytest.raises(BenchmarkError, match="one stream ended early"):
        turns(ScriptedBench(NeverTogetherError("one stream ended early")), 1, 0)
    with pytest.raises(BenchmarkError, match="the engine died"):
        turns(ScriptedBench(repeat(90), BenchmarkError("the engine died")), 2, 0)
