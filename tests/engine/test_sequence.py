"""A request's own figures."""

from __future__ import annotations

import pytest

from edged.engine.sequence import Timing
from tests.engine.simulated import sequence


def test_a_sequence_knows_what_is_prompt_computed_and_generated() -> None:
    one = sequence(1, prompt=4)
    assert (one.prompt_tokens, one.pending, one.generated, one.is_decoding) == (4, 4, 0, False)
    one.computed = 4
    one.tokens.append(7)
    assert (one.prompt_tokens, one.pending, one.generated, one.is_decoding) == (4, 1, 1, True)


def test_the_times_of_an_answer() -> None:
    """A prompt of 10 tokens in 2 s; then tokens after 0.1, 0.2 and 0.3 s, in steps of 1, 2, 2 and 3 sequences."""
    timing = Timing(came=99.5, first_step=100.0)
    for now, size in [(102.0, 1), (102.1, 2), (102.3, 2), (102.6, 3)]:
        timing.token(now, size)
    assert timing.metrics(prefilled=10, now=200.0) == {
        "waited_ms": 500,
        "prefill_time_ms": 2000,
        "generation_time_ms": 600,
        "tokens_per_second": 5,  # three gaps in 0.6 s, whatever the last token was
        "prompt_tokens_per_second": 5,
        "mean_batch_size": 2,
        "mean_itl_ms": 200,
        "p95_itl_ms": 300,
        "max_itl_ms": 300,
    }


def test_the_95th_percentile_leaves_the_longest_out_where_there_are_enough() -> None:
    timing = Timing(first_step=0.0)
    now = 1.0
    for gap in range(101):
        now += gap
        timing.token(now, 1)
    metrics = timing.metrics(prefilled=1, now=now)
    assert (metrics["p95_itl_ms"], metrics["max_itl_ms"]) == (96_000, 100_000)


def test_before_the_first_token_prefill_lasts_until_now() -> None:
    metrics = Timing(first_step=10.0).metrics(prefilled=20, now=12.0)
    assert (metrics["prefill_time_ms"], metrics["prompt_tokens_per_second"]) == (2000, 10)
    assert metrics["generation_time_ms"] == metrics["tokens_per_second"] == metrics["mean_batch_size"] == 0


def test_before_the_first_step_there_is_nothing_to_tell() -> None:
    metrics = Timing(came=10.0).metrics(prefilled=0, now=12.0)
    assert metrics.pop("waited_ms") == 2000, "but that it waits"
    assert set(metrics.values()) == {0}


def test_an_answer_of_one_token_has_neither_gaps_nor_a_rate() -> None:
    timing = Timing(first_step=1.0)
    timing.token(2.0, 1)
    metrics = timing.metrics(prefilled=1, now=3.0)
    assert metrics["tokens_per_second"] == 0
    assert "mean_itl_ms" not in metrics
    assert metrics["prefill_time_ms"] == pytest.approx(1000)
