"""The worker with a real model: what was computed once, what may be taken over, and how an answer goes on."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edged.engine.protocol import Load
from tests.engine.handles import Handle
from tests.engine.talk import Talk, counted, counting

pytestmark = pytest.mark.model

SYSTEM = ("system", "You are the keeper of a lighthouse, and answer in few words. " * 8)


@pytest.fixture
def fresh(starter: Path) -> Iterator[Talk]:
    """An engine of its own, whose cache is empty."""
    with Handle(Load(path=str(starter), context=2048, parallel=4, threads=1, digest="known")) as handle:
        yield Talk(handle)


def story(number: int, words: int = 60) -> str:
    return f"Story {number}. " + "The fox went over the hill and met a hare. " * (words // 10)


def test_the_same_prompt_again_needs_no_prefill_and_has_the_same_answer(fresh: Talk) -> None:
    first, second = (fresh.say(story(1), max_tokens=24) for _ in range(2))
    assert first.end.cached_tokens == 0
    assert second.end.cached_tokens == second.end.prompt_tokens - 1
    assert second.text == first.text


def test_a_conversation_that_goes_on_prefills_what_is_new(fresh: Talk) -> None:
    question = ("user", story(1))
    first = fresh.say(messages=[question], max_tokens=30)
    again = fresh.say(messages=[question, ("assistant", first.text), ("user", "And then?")], max_tokens=4)
    assert again.end.cached_tokens >= first.end.prompt_tokens + 20


def test_the_operators_words_serve_all_and_nobody_elses_do(fresh: Talk) -> None:
    conversation = [SYSTEM, ("user", story(2))]
    first = fresh.say(messages=conversation, shared=1, owner="ann", max_tokens=2)
    second = fresh.say(messages=conversation, shared=1, owner="bob", max_tokens=2)
    third = fresh.say(messages=conversation, shared=1, owner="ann", max_tokens=2)
    assert first.end.cached_tokens == 0
    assert 90 < second.end.cached_tokens < second.end.prompt_tokens - 60
    assert third.end.cached_tokens == third.end.prompt_tokens - 1


def test_a_system_prompt_of_ones_own_is_not_shared(fresh: Talk) -> None:
    for owner in ("ann", "bob", None):
        answer = fresh.say(messages=[SYSTEM, ("user", "Hello")], owner=owner, max_tokens=2)
        assert answer.end.cached_tokens == 0


def test_a_shared_beginning_ends_where_a_users_words_begin(fresh: Talk) -> None:
    for owner, word in (("ann", "You"), ("bob", "You")):
        fresh.say(messages=[SYSTEM, ("user", f"{word} there, what is the weather like today?")], shared=1, owner=owner)
    other = fresh.say(messages=[SYSTEM, ("user", "Quite another question")], shared=1, owner="eve", max_tokens=2)
    same = fresh.say(messages=[SYSTEM, ("user", "You there, what is")], shared=1, owner="zoe", max_tokens=2)
    assert other.end.cached_tokens == same.end.cached_tokens > 90


def test_a_cache_that_is_switched_off_keeps_nothing(starter: Path) -> None:
    load = Load(path=str(starter), context=512, parallel=2, threads=1, digest="known", prefix_cache=False)
    with Handle(load) as handle:
        talk = Talk(handle)
        assert [talk.say(story(1), max_tokens=2).end.cached_tokens for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("flash_attention", ["on", "off"])
@pytest.mark.parametrize("words", [30, 70, 130])
def test_the_same_seed_gives_the_same_text_whatever_the_cache_has(
    starter: Path, words: int, flash_attention: str
) -> None:
    load = Load(path=str(starter), context=2048, parallel=4, threads=1, digest="known", flash_attention=flash_attention)
    fields = {"temperature": 1.5, "seed": 7, "exact": True, "max_tokens": 60}
    with Handle(load) as handle:
        fresh = Talk(handle)
        fresh.say(story(9, 40), max_tokens=10)  # this one's cells come first, and are free again later
        first = fresh.say(story(3, words), **fields)
        fresh.finish(*(fresh.ask(story(3, words) + str(n), max_tokens=10) for n in range(3)))
        fresh.say(story(3, words) + " More of it, please.", max_tokens=10)
        for number in range(12):
            fresh.say(story(3, words), temperature=1.5, seed=number, max_tokens=5 + number)
        again = fresh.say(story(3, words), **fields)
        assert again.text == first.text


def test_a_beginning_of_whole_batches_is_taken_over_and_gives_the_same_text(fresh: Talk) -> None:
    fields = {"temperature": 1.5, "seed": 7, "exact": True, "max_tokens": 60}
    first = fresh.say(story(3, 200), **fields)
    again = fresh.say(story(3, 200), **fields)
    assert first.end.cached_tokens == 0
    assert again.end.cached_tokens >= 128
    assert again.text == first.text


def test_cached_prefixes_make_way_for_running_requests(fresh: Talk) -> None:
    for number in range(12):
        assert fresh.say(story(number, 120), max_tokens=8).end.reason == "length"
    uids = [fresh.ask(counting(start), max_tokens=40) for start in range(1, 5)]
    for start, answer in enumerate(fresh.finish(*uids), 1):
        assert answer.text.startswith(counted(start + 7, 4))
        assert answer.end.timings["preemptions"] == 0


@pytest.mark.parametrize("given", [1, 7, 20])
def test_an_answer_goes_on_with_the_next_token(talk: Talk, given: int) -> None:
    whole = talk.say(counting(), max_tokens=32)
    before = talk.say(counting(), max_tokens=given)
    crc32 = zlib.crc32(before.text.encode())
    rest = talk.say(counting(), max_tokens=32, generated=whole.ids[:given], crc32=crc32)
    assert before.text + rest.text == whole.text
    assert (rest.end.completion_tokens, rest.tokens) == (32, 32 - given)


def test_a_stop_string_that_had_begun_is_found_when_the_answer_goes_on(talk: Talk) -> None:
    whole = talk.say(counting(), max_tokens=60)
    stop = "12, 13"
    cut = talk.say(counting(), max_tokens=60, stop=[stop])
    assert cut.text == whole.text.partition(stop)[0]
    for given in range(1, len(cut.ids) + 1):
        rest = talk.say(counting(), max_tokens=60, stop=[stop], generated=cut.ids[:given])
        assert rest.end.reason == "stop"
        assert cut.text.endswith(rest.text)


@pytest.mark.parametrize("ids", [[1000, 2000], [3, 10**6], [-1]], ids=str)
def test_an_answer_of_another_model_does_not_go_on(talk: Talk, ids: list[int]) -> None:
    crc32 = zlib.crc32(b"in the words of another vocabulary")
    end = talk.say(counting(), max_tokens=8, generated=ids, crc32=crc32).end
    assert (end.reason, end.error, end.completion_tokens) == ("error", "unavailable", len(ids))
    assert "send the request again" in end.message
    assert talk.say(counting(), max_tokens=8).end.reason == "length"


def test_an_answer_that_was_complete_ends_at_once(talk: Talk) -> None:
    whole = talk.say(counting(), max_tokens=8)
    rest = talk.say(counting(), max_tokens=8, generated=whole.ids)
    assert (rest.text, rest.end.reason, rest.end.completion_tokens) == ("", "length", 8)


def test_a_prompt_is_cancelled_in_the_middle_of_it_and_others_do_not_notice(talk: Talk) -> None:
    alone = talk.say(counting(40), max_tokens=40)
    long = talk.ask("word " * 1500, progress=True)
    while not talk.answers[long].prefill:
        talk.listen()
    neighbour = talk.ask(counting(40), max_tokens=40)
    while not talk.answers[neighbour].deltas:
        talk.listen()
    talk.cancel(long)
    cancelled, beside = talk.finish(long, neighbour)
    assert (cancelled.end.reason, cancelled.end.completion_tokens) == ("cancelled", 0)
    assert not [note.text for note in talk.notes if note.level in ("warning", "error")], "it was meant to be aborted"
    done, total = talk.answers[long].prefill[-1]
    assert done < total
    assert beside.text == alone.text


def test_what_was_computed_of_a_cancelled_prompt_is_there_when_it_is_asked_again(fresh: Talk) -> None:
    long = fresh.ask("word " * 1500, progress=True)
    while not fresh.answers[long].prefill:
        fresh.listen()
    fresh.cancel(long)
    fresh.finish(long)
    done, total = fresh.answers[long].prefill[-1]
    assert 0 < done < total
    assert fresh.say("word " * 1500, max_tokens=2).end.cached_tokens >= done


@pytest.mark.parametrize(
    "load",
    [{"kv_type": "q8_0"}, {"flash_attention": "off"}, {"flash_attention": "on", "ubatch": 128}, {"context": 64}],
    ids=str,
)
def test_other_settings_answer_as_well(starter: Path, load: dict[str, Any]) -> None:
    with Handle(
        Load(**{"path": str(starter), "context": 512, "parallel": 4, "threads": 1, "digest": "k", **load})
    ) as h:
        talk = Talk(h)
        long = talk.say(story(1, 200), max_tokens=4)
        assert long.end.reason == ("error" if long.end.error == "context_overflow" else "length")
        for _ in range(2):
            assert talk.say(counting(), max_tokens=16).text == counted(8, 4) + " 1"
