"""What the final does not prove is corrupt, and never a result."""

from __future__ import annotations

import zlib

import pytest

from edged.wire import (
    CorruptError,
    Missing,
    Reassembler,
    Reply,
    Restarted,
)
from tests.wire.streams import (
    ID,
    accepted,
    answer,
    chunk,
    feed,
    final,
    result_of,
)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("wrong", [{"chars": 4}, {"crc32": 1}])
def test_a_text_that_the_final_does_not_prove_is_corrupt_never_a_result(wrong: dict[str, int], include: bool) -> None:
    *before, last = answer("Hel", "lo", include=include)
    stream = Reassembler()
    feed(stream, *before)
    with pytest.raises(CorruptError, match="the final says") as caught:
        stream.feed(last.model_copy(update=wrong))
    assert (caught.value.id, caught.value.gen, caught.value.seq) == (ID, 1, 3)
    assert stream.result is None


def test_a_changed_chunk_of_the_same_length_is_found_by_the_crc() -> None:
    stream = Reassembler()
    with pytest.raises(CorruptError, match=str(zlib.crc32(b"Hello"))):
        feed(stream, accepted(), chunk(1, "Hallo"), final(2, "Hello"))


def test_chunks_that_are_less_than_the_final_says_are_corrupt_where_nothing_is_missing() -> None:
    with pytest.raises(CorruptError, match="not the text of the chunks"):
        feed(Reassembler(), accepted(), chunk(1, "Hel"), final(2, "Hello", include=True))


@pytest.mark.parametrize("include", [False, True])
def test_chars_are_code_points_and_the_crc_is_of_utf8(include: bool) -> None:
    last = final(2, "Bär 🐻", include=include)
    assert (last.chars, last.crc32) == (5, zlib.crc32("Bär 🐻".encode()))
    assert result_of(feed(Reassembler(), accepted(), chunk(1, "Bär 🐻"), last)).text == "Bär 🐻"


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([accepted(), final(3, "a"), final(3, "b")], "two different messages have seq 3"),
        ([accepted(), final(3, "a"), final(4, "a")], "a final with seq 4, but the final has 3"),
        ([accepted(), final(3, "a"), chunk(4, "x")], "a chunk with seq 4, but the final has 3"),
        ([accepted(), final(3, "a"), chunk(3, "x")], "two different messages have seq 3: final and chunk"),
        ([accepted(), chunk(3, "x"), final(3, "a")], "two different messages have seq 3: chunk and final"),
        ([accepted(), chunk(5, "x"), final(3, "a")], "a message with seq 5 came before"),
        ([accepted(), chunk(1, "x"), final(1, "x")], "a message with seq 1 came before"),
        ([accepted(), chunk(2, "x"), chunk(2, "y")], "two different messages have seq 2: chunk and chunk"),
    ],
)
def test_streams_that_contradict_themselves_are_corrupt(messages: list[Reply], why: str) -> None:
    stream = Reassembler()
    feed(stream, *messages[:-1])
    with pytest.raises(CorruptError, match=why) as caught:
        stream.feed(messages[-1])
    assert (caught.value.id, caught.value.gen, caught.value.seq) == (ID, 1, messages[-1].seq)
    assert stream.result is None


def test_what_the_failing_message_still_delivered_is_in_the_error() -> None:
    stream = Reassembler()
    feed(stream, accepted(), chunk(2, "lo"), final(3, "other"))
    with pytest.raises(CorruptError) as caught:
        stream.feed(chunk(1, "Hel"))
    assert caught.value.events == (chunk(1, "Hel"), chunk(2, "lo"))


def test_a_corrupt_stream_stays_so_and_asks_for_everything() -> None:
    stream = Reassembler()
    with pytest.raises(CorruptError):
        feed(stream, *answer("Hel", "lo")[:-1], chunk(9, "held"), final(3, "other"))
    assert stream.missing == Missing(gen=1, from_seq=0, ranges=(), tail=True)
    for message in answer("Hel", "lo"):
        with pytest.raises(CorruptError) as caught:
            stream.feed(message)
        assert (caught.value.seq, caught.value.events) == (3, ())
    assert not stream._pending


def test_after_a_reset_a_replay_from_0_completes() -> None:
    stream = Reassembler()
    with pytest.raises(CorruptError):
        feed(stream, accepted(), chunk(1, "x"), final(3, "Hello", include=True))
    stream.reset()
    assert stream.text_so_far == ""
    assert stream.missing == Missing(gen=1, from_seq=0, ranges=(), tail=True)
    events = feed(stream, *answer("Hel", "lo"))
    assert events[:-1] == answer("Hel", "lo")[:-1]
    assert result_of(events).text == "Hello"


def test_a_reset_still_ignores_lower_generations_and_keeps_a_result() -> None:
    stream = Reassembler()
    feed(stream, accepted(gen=2))
    stream.reset()
    assert feed(stream, *answer("old")) == []
    result = result_of(feed(stream, *answer("new", gen=2)))
    stream.reset()
    assert stream.result is result
    assert stream.final is result.final


def test_a_higher_generation_mends_a_corrupt_one() -> None:
    stream = Reassembler()
    with pytest.raises(CorruptError):
        feed(stream, accepted(), chunk(1, "x"), final(2, "y"))
    events = feed(stream, *answer("Hello", gen=2))
    assert events[0] == Restarted(2)
    assert result_of(events).text == "Hello"
