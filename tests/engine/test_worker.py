"""The worker with a real model: what is asked is answered, as it was asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.engine.files import digest
from edged.engine.protocol import Load, Loading
from tests.engine.handles import Handle
from tests.engine.talk import Talk, counted, counting

pytestmark = pytest.mark.model


def test_a_loaded_model_says_what_it_is(talk: Talk, starter: Path) -> None:
    ready = talk.ready
    assert (ready.context, ready.parallel, ready.threads) == (2048, 8, 1)
    assert (ready.parameters, ready.quantisation, ready.digest) == (134_515_008, "Q4_1", digest(starter))


def test_a_digest_that_is_known_is_taken_as_it_is(cramped: Talk) -> None:
    assert cramped.ready.digest == "known"


def test_loading_is_reported_from_its_beginning_to_its_end(starter: Path) -> None:
    with Handle(Load(path=str(starter), context=256, parallel=1, threads=1, digest="known")) as handle:
        Talk(handle)
        fractions = [report.fraction for _, report in handle.heard if isinstance(report, Loading)]
    assert fractions == sorted(set(fractions))
    assert 3 <= len(fractions) <= 21
    assert fractions[0] < 0.2
    assert 0.9 < fractions[-1] <= 1


def test_a_context_longer_than_the_model_was_trained_for_is_cut_to_that(starter: Path) -> None:
    with Handle(Load(path=str(starter), context=100_000, parallel=1, threads=1, digest="known")) as handle:
        assert Talk(handle).ready.context == 8192


def test_a_raw_prompt_is_completed_as_it_stands(talk: Talk) -> None:
    answer = talk.say(counting(), max_tokens=16)
    assert answer.text == " 8, 9, 10, 11, 1"
    assert (answer.end.reason, answer.end.prompt_tokens, answer.end.completion_tokens) == ("length", 20, 16)


def test_a_conversation_goes_through_the_models_template(talk: Talk) -> None:
    """Only in a conversation this model ends its answers by itself, though perhaps not each of them."""
    questions = ["Repeat this: 🎉 你好世界 🐻", "What is the capital of France?", "Say hello."]
    answers = talk.finish(*(talk.ask(messages=[("user", text)], max_tokens=60) for text in questions))
    assert answers[0].end.prompt_tokens == 49
    ended = [answer for answer in answers if answer.end.reason == "stop"]
    assert ended
    for answer in ended:
        assert "<|im_end|>" not in answer.text
        assert answer.end.completion_tokens == answer.tokens < 60


def test_eight_requests_are_answered_together(talk: Talk) -> None:
    with talk.at_once():
        uids = [talk.ask(counting(start), max_tokens=24) for start in range(1, 9)]
    answers = talk.finish(*uids)
    for start, answer in enumerate(answers, 1):
        assert answer.text.startswith(counted(start + 7, 5))
        assert answer.end.reason == "length"
        assert answer.end.completion_tokens == answer.tokens == 24
    assert max(answer.end.timings["mean_batch_size"] for answer in answers) > 1


def test_more_requests_than_slots_are_answered_one_after_the_other(talk: Talk) -> None:
    uids = [talk.ask(counting(start), max_tokens=4) for start in range(1, 13)]
    for start, answer in enumerate(talk.finish(*uids), 1):
        assert answer.text.startswith(counted(start + 7, 1))
        assert answer.end.completion_tokens == 4


def test_an_answer_ends_after_max_tokens(talk: Talk) -> None:
    for most in (1, 5):
        answer = talk.say(counting(), max_tokens=most)
        assert (answer.end.reason, answer.end.completion_tokens, answer.tokens) == ("length", most, most)


@pytest.mark.parametrize("stop", [["9, 1"], ["13", "0, 11, ", "11, 12"], ["9", ", 9", "8, 9,"]])
def test_an_answer_ends_before_a_stop_string_that_spans_tokens(talk: Talk, stop: list[str]) -> None:
    full = talk.say(counting(), max_tokens=30).text
    answer = talk.say(counting(), max_tokens=30, stop=stop)
    first = min((full.index(s) + len(s), full.index(s)) for s in stop if s in full)[1]
    assert answer.text == full[:first]
    assert answer.end.reason == "stop"
    assert answer.end.completion_tokens < 30


def test_what_was_held_back_for_a_stop_string_comes_with_the_end(talk: Talk) -> None:
    full = talk.say(counting(), max_tokens=8).text
    answer = talk.say(counting(), max_tokens=8, stop=[full[-3:] + "!"])
    assert (answer.text, answer.end.reason) == (full, "length")
    assert answer.deltas[-1][0].endswith(full[-3:])


def test_the_same_seed_gives_the_same_text_alone(talk: Talk) -> None:
    said = [talk.say("Once upon a time", temperature=1.0, top_k=40, seed=seed).text for seed in (7, 8, 7)]
    assert said[0] == said[2] != said[1]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0, "seed": 99},
        {"temperature": 1e-40},
        {"temperature": 1e-5},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 1e-9},
        {"temperature": 1.0, "min_p": 1.0},
    ],
    ids=str,
)
def test_where_only_the_likeliest_token_is_left_the_text_is_the_greedy_one(
    talk: Talk, sampling: dict[str, float]
) -> None:
    greedy = talk.say("Once upon a time", max_tokens=10)
    assert talk.say("Once upon a time", max_tokens=10, **sampling).text == greedy.text


@pytest.mark.parametrize("penalty", ["repeat_penalty", "presence_penalty", "frequency_penalty"])
def test_a_penalty_turns_the_model_away_from_what_was_said(talk: Talk, penalty: str) -> None:
    prompt = "A list of cities: Paris, London,"  # of which it soon knows no more, and says the last again
    assert talk.say(prompt, max_tokens=20, **{penalty: 2.0}).text != talk.say(prompt, max_tokens=20).text


def test_penalties_count_the_prompt_as_said_and_frequency_every_time(talk: Talk) -> None:
    prompt = "hello, hello, hello, hello,"
    for mild in ({}, {"presence_penalty": 0.5}):
        assert talk.say(prompt, max_tokens=3, **mild).text.startswith(" hello")
    for strong in ({"repeat_penalty": 2.0}, {"frequency_penalty": 2.0}):
        assert not talk.say(prompt, max_tokens=3, **strong).text.startswith(" hello")


def test_emoji_and_cjk_come_out_whole(talk: Talk) -> None:
    for prompt in ("🐻 🎉 🐻 🎉 🐻 🎉 🐻 🎉", "中文 中文 中文 中文"):
        answer = talk.say(prompt, max_tokens=24)
        # Which ones it says differs from one kind of CPU to the next.
        assert any(len(character.encode()) > 2 for character in answer.text)
        assert "\ufffd" not in answer.text


def test_every_token_is_counted_in_the_deltas(talk: Talk) -> None:
    answer = talk.say("🎉🎉🎉🎉🎉🎉🎉🎉", max_tokens=12)
    assert all(text and tokens >= 1 for text, tokens in answer.deltas)
    assert max(tokens for _, tokens in answer.deltas) > 1, "there were tokens that are parts of a character"
    unfinished = answer.end.completion_tokens - answer.tokens
    assert 0 <= unfinished <= 3  # of a character that max_tokens cut off


def test_timings_are_there_and_agree_with_each_other(talk: Talk) -> None:
    uids = [talk.ask(counting(start), max_tokens=20) for start in (1, 20)]
    for answer in talk.finish(*uids):
        times = answer.end.timings
        assert set(times) == {
            "waited_ms", "prefill_time_ms", "generation_time_ms", "tokens_per_second", "prompt_tokens_per_second",
            "mean_batch_size", "mean_itl_ms", "p95_itl_ms", "max_itl_ms", "preemptions",
        }  # fmt: skip
        assert times["prefill_time_ms"] > 0
        assert times["waited_ms"] > 0
        assert 0 < times["mean_itl_ms"] <= times["max_itl_ms"] <= times["generation_time_ms"]
        assert 0 < times["p95_itl_ms"] <= times["max_itl_ms"]
        assert times["mean_itl_ms"] * 19 == pytest.approx(times["generation_time_ms"], rel=0.01)
        assert times["tokens_per_second"] == pytest.approx(1000 / times["mean_itl_ms"], rel=0.01)
        computed = answer.end.prompt_tokens - answer.end.cached_tokens
        prefilled = computed / times["prefill_time_ms"] * 1000
        assert times["prompt_tokens_per_second"] == pytest.approx(prefilled, rel=0.01)
        assert 1 <= times["mean_batch_size"] <= 8
        assert times["preemptions"] == 0


def test_an_answer_of_one_token_has_no_gaps(talk: Talk) -> None:
    times = talk.say(counting(), max_tokens=1).end.timings
    assert (times["generation_time_ms"], times["tokens_per_second"]) == (0, 0)
    assert "mean_itl_ms" not in times


def test_an_empty_prompt_is_refused(talk: Talk) -> None:
    end = talk.say("").end
    assert (end.reason, end.error, end.message) == ("error", "bad_request", "the prompt has no tokens: send some text")
