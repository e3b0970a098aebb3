"""A higher generation replaces what came before; lower ones and refusals of other tries change nothing."""

from __future__ import annotations

import pytest

from edged.wire import (
    CorruptError,
    ErrorCode,
    Gap,
    Missing,
    Reassembler,
    Refused,
    Restarted,
)
from tests.wire.streams import (
    ID,
    accepted,
    answer,
    chunk,
    feed,
    final,
    reasoning,
    refused,
    result_of,
)


def test_a_higher_generation_throws_away_the_lower() -> None:
    stream = Reassembler()
    feed(stream, accepted(), chunk(1, "old"), chunk(3, "held"), reasoning(2, "hm"))
    events = feed(stream, accepted(gen=2))
    assert events == [Restarted(2), accepted(gen=2)]
    assert (stream.gen, stream.text_so_far) == (2, "")
    result = result_of(feed(stream, *answer("new", gen=2)))
    assert (result.gen, result.text, result.reasoning, result.duplicates) == (2, "new", "", 1)


def test_a_generation_may_begin_with_any_of_its_messages() -> None:
    stream = Reassembler()
    feed(stream, accepted(), chunk(1, "old"))
    assert feed(stream, chunk(1, "new", gen=4)) == [Restarted(4), Gap(4, 0, 0)]
    assert feed(stream, accepted(gen=4)) == [accepted(gen=4), chunk(1, "new", gen=4)]


def test_the_first_generation_seen_is_no_restart_whatever_its_number() -> None:
    assert feed(Reassembler(), accepted(gen=3)) == [accepted(gen=3)]


def test_lower_generations_are_ignored_even_where_they_complete() -> None:
    stream = Reassembler()
    feed(stream, accepted(gen=2))
    assert feed(stream, *answer("old", gen=1), final(0, "wrong", include=True)) == []
    assert stream.missing == Missing(gen=2, from_seq=1, ranges=(), tail=True)


def test_a_refusal_completes_with_its_error() -> None:
    result = result_of(feed(Reassembler(ID), refused()))
    assert result.gen == 0
    assert result.text == ""
    assert result.error is not None
    assert (result.error.code, result.error.retry_after_ms) == (ErrorCode.OVERLOADED, 1500)


def test_a_refusal_of_another_retry_does_not_end_the_running_stream() -> None:
    conflict = refused(ErrorCode.ID_CONFLICT)
    stream = Reassembler()
    before, after = answer("Hel", "lo")[:2], answer("Hel", "lo")[2:]
    assert feed(stream, *before, conflict) == [*before, Refused(conflict)]
    assert stream.gen == 1
    assert result_of(feed(stream, *after)).text == "Hello"


def test_generation_0_is_one_final_and_nothing_else() -> None:
    for message in (chunk(0, "x", gen=0), final(1, "", gen=0)):
        with pytest.raises(CorruptError, match="generation 0 is one final with seq 0"):
            Reassembler().feed(message)


def test_a_malformed_refusal_does_not_stop_the_stream_that_follows() -> None:
    stream = Reassembler()
    with pytest.raises(CorruptError):
        stream.feed(chunk(0, "x", gen=0))
    assert stream.missing == Missing(gen=None, from_seq=0, ranges=(), tail=True)
    assert feed(stream, chunk(0, "x"), chunk(0, "x", gen=0)) == [chunk(0, "x")]
