"""What a step costs is learnt from steps, and a hiccup spoils none of it."""

from __future__ import annotations

import pytest

from edged.engine.costs import Costs


def taught(*steps: tuple[int, int, float]) -> Costs:
    costs = Costs()
    for decoding, prefill, seconds in steps:
        costs.learn(decoding=decoding, prefill=prefill, seconds=seconds)
    return costs


def test_what_was_never_seen_is_not_known() -> None:
    costs = Costs()
    assert costs.expected_s(decoding=1, prefill=0) is None
    assert taught((1, 0, 0.01)).expected_s(decoding=1, prefill=4) is None
    assert costs.expected_s(decoding=0, prefill=0) == 0


def test_a_step_costs_its_decoding_and_its_prefill() -> None:
    costs = taught((2, 0, 0.010), (0, 100, 0.1))
    assert costs.expected_s(decoding=2, prefill=50) == pytest.approx(0.010 + 50 * 0.001)


def test_one_slow_step_changes_nothing_in_what_decoding_costs() -> None:
    steps = [(4, 0, 0.010)] * 4
    assert taught(*steps, (4, 0, 5.0)).decode_s(4) == 0.010


def test_slow_steps_that_stay_are_believed() -> None:
    assert taught(*[(4, 0, 0.010)] * 5, *[(4, 0, 0.050)] * 3).decode_s(4) == 0.050


def test_a_whole_step_quicker_than_decoding_should_be_corrects_that() -> None:
    costs = taught((4, 0, 0.050), (0, 100, 0.1), *[(4, 16, 0.030)] * 2)
    assert costs.decode_s(4) < 0.050


def test_other_numbers_of_sequences_are_judged_by_the_nearest_known() -> None:
    costs = taught((2, 0, 0.010), (8, 0, 0.020))
    assert costs.decode_s(3) == pytest.approx(0.015)
    assert costs.decode_s(7) == 0.020
    assert costs.decode_s(16) == pytest.approx(0.040)


def test_prefill_follows_what_it_costs_step_by_step() -> None:
    costs = taught((1, 0, 0.010), (0, 100, 0.1), *[(1, 50, 0.110)] * 40)
    assert costs.prefill_s == pytest.approx(0.002, rel=0.01)


def test_one_slow_step_of_prefill_counts_for_little() -> None:
    assert taught((0, 100, 0.1), (0, 100, 60.0)).prefill_s == pytest.approx(0.001 + 0.2 * 0.003)


def test_a_prompt_of_two_tokens_does_not_say_what_a_token_costs() -> None:
    assert taught((0, 2, 0.016)).prefill_s == pytest.approx(0.001)


def test_a_price_that_is_too_high_is_corrected_although_so_few_tokens_go_along() -> None:
    """It was learnt beside a busy neighbour, and as many tokens go along as make a step twice as long by that price."""
    costs = taught((4, 0, 0.040), (0, 100, 3.2))
    for _ in range(25):
        tokens = max(1, int(0.040 / costs.prefill_s))
        costs.learn(decoding=4, prefill=tokens, seconds=0.040 + 0.008 * tokens)
    assert costs.prefill_s == pytest.approx(0.008, rel=0.2)


def test_few_tokens_that_hardly_count_in_a_step_say_little() -> None:
    costs = taught((4, 0, 0.040), (0, 100, 0.1), (4, 2, 0.060))
    assert costs.prefill_s == pytest.approx(0.001 + 0.2 * 2 / 16 * 0.003)


def test_a_first_step_of_both_is_shared_out_by_tokens() -> None:
    assert taught((2, 18, 0.020)).prefill_s == pytest.approx(0.001)


def test_decoding_is_measured_by_itself_again_after_some_steps_of_both() -> None:
    both = [(4, 8, 0.080)] * 12
    assert not taught((4, 0, 0.040), *both[1:]).is_blurred
    assert taught((4, 0, 0.040), *both).is_blurred
    assert not taught((4, 0, 0.040), *both, (4, 0, 0.050)).is_blurred
    assert not taught(*[(0, 64, 0.3)] * 20).is_blurred
