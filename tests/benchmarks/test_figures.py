"""What the benchmark counts, and what it refuses to count."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.figures import (
    BenchmarkError,
    EndedEarlyError,
    Middle,
    NeverTogetherError,
    Spread,
    in_both,
    long_enough,
    of_bare,
    of_node,
    ratio,
    replies,
)

METRICS = {"time_to_first_token_ms": 90.0, "mean_itl_ms": 10.0, "p95_itl_ms": 12.0, "max_itl_ms": 20.0}
Timed = tuple[float, str]


def message(at: float, id_: str, seq: int, kind: str, **fields: Any) -> Timed:
    return at, json.dumps({"type": kind, "id": id_, "gen": 1, "seq": seq, **fields})


def stream(
    id_: str, sent: float, chunks: list[tuple[float, int]], *, reason: str = "length", **more: Any
) -> list[Timed]:
    """All messages of a reply; the final comes with the last chunk."""
    tokens = sum(n for _, n in chunks)
    return [
        message(sent, id_, 0, "accepted"),
        *(message(at, id_, i, "chunk", text="1", n=n) for i, (at, n) in enumerate(chunks, 1)),
        message(
            *(chunks[-1][0], id_, len(chunks) + 1, "final"),
            finish_reason=reason,
            usage={"prompt_tokens": 60, "completion_tokens": tokens},
            metrics=METRICS,
            **more,
        ),
    ]


#: Stream 0 generates from 1.0 to 5.0, stream 1 from 2.0 to 6.0: together from 2.0 to 5.0.
SENT = {"1-0-0": 0.0, "1-1-0": 0.5}
MESSAGES = [
    *stream("1-0-0", 0.0, [(1.0, 1), (2.0, 10), (3.0, 10), (5.0, 10)]),
    *stream("1-1-0", 0.5, [(2.0, 1), (4.0, 20), (5.5, 3), (6.0, 7)]),
]


def test_only_the_time_in_which_all_streams_generate_counts() -> None:
    figures = of_node(replies(SENT, MESSAGES))
    assert figures.window_s == pytest.approx(3.0)
    assert figures.tokens_per_s == pytest.approx((10 + 10 + 20) / 3.0)
    assert sorted(figures.gaps_ms) == pytest.approx([1000, 2000, 2000])


def test_overall_counts_everything_from_the_first_request_to_the_last_token() -> None:
    assert of_node(replies(SENT, MESSAGES)).overall_per_s == pytest.approx((31 + 31) / 6.0)


def test_requests_of_the_start_are_told_from_those_that_come_while_others_run() -> None:
    sent = {**SENT, "1-0-1": 5.0}
    later = stream("1-0-1", 5.0, [(5.5, 1), (5.8, 4)])
    figures = of_node(replies(sent, [*MESSAGES, *later]))
    assert figures.ttft_ms == pytest.approx([1000, 1500])
    assert figures.later_ttft_ms == pytest.approx([500])
    assert figures.window_s == pytest.approx(3.8)  # the client asked again: its first end did not close the window


def test_what_the_finals_say_is_taken_from_every_reply() -> None:
    figures = of_node(replies(SENT, MESSAGES))
    assert (figures.node_ttft_ms, figures.node_max_itl_ms) == ([90.0, 90.0], [20.0, 20.0])
    assert figures.prompt_tokens == 120


def test_streams_that_never_run_together_are_no_measurement() -> None:
    apart = [*stream("1-0-0", 0.0, [(1.0, 1), (1.5, 5)]), *stream("1-1-0", 0.5, [(2.0, 1), (3.0, 5)])]
    with pytest.raises(BenchmarkError, match="ended before another had begun"):
        of_node(replies(SENT, apart))


def test_an_answer_that_the_model_ended_is_told_from_a_failure() -> None:
    with pytest.raises(EndedEarlyError, match="after 5 tokens"):
        replies({"1-0-0": 0.0}, stream("1-0-0", 0.0, [(1.0, 5)], reason="stop"))
    with pytest.raises(BenchmarkError, match="the engine died") as caught:
        replies({"1-0-0": 0.0}, stream("1-0-0", 0.0, [(1.0, 5)], reason="error", error={"message": "the engine died"}))
    assert not isinstance(caught.value, EndedEarlyError)


@pytest.mark.parametrize("lost", [1, 2, 3], ids=["first chunk", "second chunk", "final"])
def test_a_reply_with_a_hole_is_no_measurement(lost: int) -> None:
    messages = stream("1-0-0", 0.0, [(1.0, 1), (2.0, 5)])
    with pytest.raises(BenchmarkError, match="1-0-0"):
        replies({"1-0-0": 0.0}, messages[:lost] + messages[lost + 1 :])


def test_messages_of_a_measurement_that_was_given_up_are_passed_over() -> None:
    assert len(replies(SENT, [*stream("0-0-0", 0.0, [(0.1, 9)]), *MESSAGES])) == 2


def test_the_bare_loop_is_counted_from_the_first_tokens_on() -> None:
    figures = of_bare(started=0.0, marks=[2.0, 2.1, 2.3, 2.6], prompt_tokens=100, streams=4)
    assert figures.tokens_per_s == pytest.approx(4 * 3 / 0.6)
    assert figures.overall_per_s == pytest.approx(4 * 4 / 2.6)
    assert figures.gaps_ms == pytest.approx([100, 200, 300])


def test_of_two_sides_only_the_time_counts_in_which_both_generate() -> None:
    """From a chunk of one stream to another of the same, so that what comes in bursts is counted whole."""
    answers = replies(SENT, MESSAGES)
    assert in_both(answers, (0.5, 9.0)) == (2.0, 5.0)
    assert in_both(answers, (2.5, 9.0)) == (3.0, 5.0)
    assert in_both(answers, (0.5, 4.9)) == (2.0, 3.0)
    with pytest.raises(NeverTogetherError, match="one side ended before"):
        in_both(answers, (0.5, 2.5))


def test_a_measurement_is_repeated_where_the_model_ended_an_answer_but_not_for_ever() -> None:
    outcomes: list[int | BenchmarkError] = [EndedEarlyError("early"), EndedEarlyError("early"), 7]

    def measure() -> int:
        outcome = outcomes.pop(0)
        if isinstance(outcome, BenchmarkError):
            raise outcome
        return outcome

    assert long_enough(measure) == 7
    outcomes += [EndedEarlyError("early")] * 4
    with pytest.raises(EndedEarlyError):
        long_enough(measure)
    assert len(outcomes) == 1
    outcomes[:] = [NeverTogetherError("never"), 7]
    assert long_enough(measure, NeverTogetherError) == 7


def test_a_window_in_which_a_sides_clock_stands_still_is_none() -> None:
    with pytest.raises(NeverTogetherError, match="one side had no turn"):
        of_node(replies(SENT, MESSAGES), (2.5, 2.5))


def test_a_window_can_be_given_to_both() -> None:
    node = of_node(replies(SENT, MESSAGES), (2.0, 3.0))
    assert (node.window_s, node.tokens_per_s) == (1.0, 10.0)
    assert node.gaps_ms == pytest.approx([1000])
    bare = of_bare(started=0.0, marks=[1.0, 2.0, 3.0, 4.0], prompt_tokens=9, streams=4, window=(1.5, 3.5))
    assert bare.tokens_per_s == pytest.approx(4 * 1.0)  # two steps of a second: one whole, and a half of two
    assert bare.gaps_ms == pytest.approx([1000])
    assert bare.overall_per_s == pytest.approx(4 * 4 / 4.0)


def test_a_reply_can_be_told_by_another_clock() -> None:
    reply = replies(SENT, MESSAGES)[0].by(lambda at: at / 2)
    assert (reply.sent, reply.chunks[1], reply.ended) == (0.0, (1.0, 10), 2.5)


def test_the_ratio_is_of_neighbouring_measurements() -> None:
    """A machine that halves its speed in between changes both sides of a pair, and no ratio."""
    assert ratio([90, 45, 80], [100, 50, 100]) == Middle(0.9, 0.8, 0.9)


def test_a_spread_tells_median_nearest_rank_and_greatest() -> None:
    assert Spread.of(range(1, 101)) == Spread(50.5, 95, 100, 100)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 1)
    assert Spread.of([]) == Spread()
