"""The worker with a real model and several requests: long prompts, cancelled neighbours, and too small a KV cache."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from edged.engine.process import Lost
from edged.engine.protocol import Load
from tests.engine.handles import Handle
from tests.engine.talk import Talk, counted, counting

pytestmark = pytest.mark.model

#: 4 tokens each.
LONG = "The quick brown fox" + " and the lazy dog" * 60


def test_a_long_prompt_is_prefilled_between_the_tokens_of_others(talk: Talk) -> None:
    neighbour = talk.ask(counting(), max_tokens=1000)
    while not talk.answers[neighbour].deltas:
        talk.listen()
    long = talk.ask(LONG, max_tokens=2, progress=True)
    together = 0
    while talk.answers[long].finished is None:
        step = talk.listen()
        advanced = any(uid == long for uid, _, _ in step.prefill)
        together += advanced and any(uid == neighbour for uid, _, _ in step.deltas)
    talk.cancel(neighbour)
    talk.finish(neighbour)
    done = [done for done, _ in talk.answers[long].prefill]
    totals = {total for _, total in talk.answers[long].prefill}
    assert totals == {talk.answers[long].end.prompt_tokens}
    assert done == sorted(set(done))
    assert done[-1] == totals.pop()
    assert together == len(done), "each step of the prefill brought the other a token"
    assert talk.answers[long].end.completion_tokens == 2


def test_prefill_is_reported_only_to_those_who_asked(talk: Talk) -> None:
    quiet, curious = talk.ask(counting(), max_tokens=2), talk.ask(counting(5), max_tokens=2, progress=True)
    talk.finish(quiet, curious)
    assert talk.answers[quiet].prefill == []
    total = talk.answers[curious].end.prompt_tokens
    assert talk.answers[curious].prefill[-1] == (total, total)


def test_a_request_cancelled_in_mid_stream_keeps_what_it_said_and_disturbs_nobody(talk: Talk) -> None:
    cancelled, neighbour = talk.ask(counting(), max_tokens=1000), talk.ask(counting(20), max_tokens=24)
    while len(talk.answers[cancelled].deltas) < 5:
        talk.listen()
    talk.cancel(cancelled)
    [answer, beside] = talk.finish(cancelled, neighbour)
    assert answer.end.reason == "cancelled"
    assert answer.text.startswith(counted(8, 1))
    assert 5 <= answer.tokens == answer.end.completion_tokens < 1000
    assert answer.end.timings["generation_time_ms"] > 0
    assert (beside.end.reason, beside.tokens) == ("length", 24)
    assert beside.text.startswith(counted(27, 5))


def test_a_request_is_cancelled_in_the_middle_of_its_prompt(talk: Talk) -> None:
    neighbour = talk.ask(counting(), max_tokens=1000)
    while not talk.answers[neighbour].deltas:
        talk.listen()
    long = talk.ask(LONG * 6, progress=True)  # more than two full batches
    while not talk.answers[long].prefill:
        talk.listen()
    talk.cancel(long)
    [answer] = talk.finish(long)
    assert (answer.end.reason, answer.end.completion_tokens, answer.text) == ("cancelled", 0, "")
    assert answer.end.timings["prefill_time_ms"] > 0
    done, total = answer.prefill[-1]
    assert done < total == answer.end.prompt_tokens
    before = len(talk.answers[neighbour].deltas)
    while len(talk.answers[neighbour].deltas) < before + 5:
        talk.listen()
    talk.cancel(neighbour)
    talk.finish(neighbour)


def test_a_waiting_request_is_cancelled_before_it_begins(talk: Talk) -> None:
    running = [talk.ask(counting(start), max_tokens=1000) for start in range(1, 9)]
    waiting, next_one = talk.ask(counting(50), progress=True), talk.ask(counting(60), max_tokens=4)
    talk.cancel(waiting)
    [answer] = talk.finish(waiting)
    assert (answer.end.reason, answer.end.completion_tokens, answer.prefill) == ("cancelled", 0, [])
    assert answer.end.prompt_tokens > 0
    talk.cancel(running[3])
    [after] = talk.finish(next_one)
    assert after.text.startswith(counted(67, 1))
    for uid in running:
        talk.cancel(uid)
    assert {answer.end.reason for answer in talk.finish(*running)} == {"cancelled"}


def test_cancelling_what_is_not_there_does_nothing(talk: Talk) -> None:
    talk.cancel(10**9)
    uid = talk.ask(counting(), max_tokens=2)
    talk.finish(uid)
    talk.cancel(uid)
    assert talk.say(counting(), max_tokens=2).end.reason == "length"


def test_an_answer_ends_where_the_context_does(cramped: Talk) -> None:
    answer = cramped.say(counting(length=60), max_tokens=1000)
    assert answer.end.reason == "length"
    assert answer.end.prompt_tokens + answer.end.completion_tokens == cramped.ready.context + 1
    assert answer.end.completion_tokens >= 10


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused_with_the_figures(cramped: Talk) -> None:
    for tokens in (256, 257, 1000):
        end = cramped.say("dog" + " dog" * (tokens - 1)).end
        assert (end.reason, end.error, end.prompt_tokens) == ("error", "context_overflow", tokens)
        assert f"the prompt has {tokens} tokens; the model's context holds 256" in end.message


def test_the_longest_prompt_that_fits_is_answered(cramped: Talk) -> None:
    end = cramped.say("dog" + " dog" * 254).end
    assert (end.error, end.prompt_tokens) == ("", 255)
    assert end.completion_tokens <= 2


def test_where_the_cache_is_too_small_some_are_computed_again_and_all_end_well(cramped: Talk) -> None:
    """Six of 14 tokens and 50 more each: 384, where there is room for 256."""
    with cramped.at_once():  # the fifth finds room only while the others have said little
        uids = [cramped.ask(counting(start, length=5), max_tokens=50) for start in range(1, 7)]
    answers = cramped.finish(*uids)
    assert sum(answer.end.timings["preemptions"] for answer in answers) > 0
    assert answers[0].end.timings["preemptions"] == 0, "the oldest is never sent away"
    for start, answer in enumerate(answers, 1):
        assert (answer.end.reason, answer.end.completion_tokens, answer.tokens) == ("length", 50, 50)
        assert answer.text.startswith(counted(start + 5, 10)), "nothing is lost and nothing is said twice"
        assert answer.end.prompt_tokens in (14, 15)


def test_a_worker_that_is_killed_in_mid_stream_is_replaced(starter: Path) -> None:
    with Handle(Load(path=str(starter), context=256, parallel=2, threads=1)) as handle:
        first = Talk(handle)
        uid = first.ask(counting(), max_tokens=1000)
        while not first.answers[uid].deltas:
            first.listen()
        assert handle.engine.pid is not None
        os.kill(handle.engine.pid, signal.SIGKILL)
        assert handle.next(Lost)[1].reason == "its process was ended by SIGKILL"
        second = Talk(handle)
        assert second.child == 2
        assert second.ready.digest == first.ready.digest
        assert second.say(counting(), max_tokens=2).end.reason == "length"
