"""The search: which settings are tried, in which order, and what it takes to be chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edged.tune.search import (
    Point,
    Row,
    Search,
    Speed,
    TrialFailed,
    flash_attention,
    thread_counts,
    threads,
    ubatch,
)

POINT = Point(threads=4, ubatch=64, flash_attention="auto", file=Path("model.gguf"), kind="Q4_1", size=100)


def _speed(tokens: float, **figures: float) -> Speed:
    return replace(
        Speed(prefill=tokens, decode_one=tokens, decode_many=tokens, streams=4, memory=1000),
        **figures,  # type: ignore[arg-type]  # names of figures, as the tests give them
    )


def _search(cost: Callable[[Point], float], *, rounds: int = 1) -> tuple[Search, list[Point]]:
    """A search on a machine of which `cost` says how fast it is, and the order of what was tried."""
    tried: list[Point] = []

    def measure(row: Row) -> Speed:
        tried.append(row.point)
        return _speed(cost(row.point))

    return Search(measure, rounds=rounds), tried


def test_the_score_is_the_geometric_mean_so_a_gain_counts_the_same_in_each_figure() -> None:
    assert _speed(8).score == pytest.approx(8)
    doubled = [_speed(8, **{name: 16.0}).score for name in ("prefill", "decode_one", "decode_many")]
    assert doubled == pytest.approx([8 * 2 ** (1 / 3)] * 3)


def test_each_step_varies_the_best_of_the_steps_before() -> None:
    """Not every combination is tried: 1 and 2 threads are never tried with another batch."""
    search, tried = _search(lambda p: p.threads * (2 if p.ubatch == 128 else 1) * (0.5 if p.threads == 4 else 1))
    chosen = search.run(POINT, [threads([1, 3, 4]), ubatch([32, 128])])
    assert chosen.point == replace(POINT, threads=3, ubatch=128)
    assert [(p.threads, p.ubatch) for p in tried] == [
        (4, 64),
        *[(4, 64), (1, 64), (3, 64)],
        *[(3, 64), (3, 32), (3, 128)],
    ]


def test_what_is_set_already_is_no_candidate() -> None:
    search, _ = _search(lambda _: 1)
    search.run(POINT, [threads([4]), ubatch([64]), flash_attention(["auto", "on", "off"])])
    assert [row.what for row in search.rows] == ["current", "flash on", "flash off"]


def test_a_gain_of_three_percent_or_less_changes_nothing() -> None:
    search, _ = _search(lambda p: {64: 100.0, 128: 103.0}[p.ubatch])
    assert search.run(POINT, [ubatch([128])]).what == "current"
    search, _ = _search(lambda p: {64: 100.0, 128: 103.2}[p.ubatch])
    assert search.run(POINT, [ubatch([128])]).what == "ubatch 128"


def test_candidates_take_turns_and_the_best_of_each_figure_counts() -> None:
    """A neighbour that disturbs one round must not decide."""
    speeds = {64: iter([10, 2, 10, 10]), 128: iter([12, 12, 3])}
    search, tried = _search(lambda p: next(speeds[p.ubatch]), rounds=3)
    # the second round of 128 is the better one; that of 64 was disturbed in the first
    chosen = search.run(POINT, [ubatch([128])])
    assert [p.ubatch for p in tried] == [64, 64, 128, 64, 128, 64, 128]
    assert [row.score for row in search.rows] == pytest.approx([10, 12])
    assert chosen.what == "ubatch 128"


def test_of_several_trials_the_largest_memory_is_told() -> None:
    assert _speed(5, memory=7).best(_speed(9, memory=4)) == _speed(9, memory=7)


def test_what_is_far_behind_is_not_measured_again() -> None:
    search, tried = _search(lambda p: {1: 10.0, 3: 90.0, 4: 100.0}[p.threads], rounds=3)
    search.run(POINT, [threads([1, 3])])
    assert Counter(p.threads for p in tried) == {4: 4, 3: 3, 1: 1}


def test_a_failed_candidate_is_a_row_and_the_search_goes_on() -> None:
    def cost(point: Point) -> float:
        if point.ubatch == 32:
            raise TrialFailed("it crashed")
        return point.ubatch

    search, tried = _search(cost, rounds=3)
    assert search.run(POINT, [ubatch([32, 128])]).what == "ubatch 128"
    assert [(row.what, row.failure) for row in search.rows] == [
        ("current", ""),
        ("ubatch 32", "it crashed"),
        ("ubatch 128", ""),
    ]
    assert Counter(p.ubatch for p in tried)[32] == 1


def test_what_fails_once_is_not_chosen_although_it_was_fast() -> None:
    """Settings with which llama.cpp crashes now and then are of no use."""
    calls = Counter[int]()

    def cost(point: Point) -> float:
        calls[point.ubatch] += 1
        if point.ubatch == 128 and calls[128] == 2:
            raise TrialFailed("it crashed")
        return point.ubatch

    search, _ = _search(cost, rounds=3)
    assert search.run(POINT, [ubatch([128])]).what == "current"


def test_where_the_current_settings_fail_those_that_work_are_chosen() -> None:
    def cost(point: Point) -> float:
        if point.ubatch == 64:
            raise TrialFailed("no memory")
        return 5

    search, _ = _search(cost)
    assert search.run(POINT, [threads([1]), ubatch([32])]).what == "ubatch 32"


def test_where_everything_fails_the_current_settings_stay() -> None:
    def cost(_: Point) -> float:
        raise TrialFailed("no memory")

    search, _ = _search(cost, rounds=3)
    chosen = search.run(POINT, [threads([1]), ubatch([32])])
    assert chosen.what == "current"
    assert [row.failure for row in search.rows] == ["no memory"] * 3


def test_a_barred_candidate_is_measured_and_not_chosen() -> None:
    search, tried = _search(lambda p: 100 if p.kind == "Q4_0" else 1)
    barred = Row("Q4_0", replace(POINT, kind="Q4_0"), barred="too much is lost")
    assert search.run(POINT, [lambda _: [barred]]).what == "current"
    assert barred.speed == _speed(100)
    assert len(tried) == 3


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 4]), (8, [1, 4, 7, 8])]
)
def test_one_half_all_but_one_and_all_cores_are_tried(cores: int, counts: list[int]) -> None:
    assert thread_counts(cores) == counts
