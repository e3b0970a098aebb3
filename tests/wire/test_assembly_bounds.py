"""Whatever comes, no more is held than the consumer allows."""

from __future__ import annotations

import tracemalloc

import pytest

from edged.wire import (
    Gap,
    Missing,
    Reassembler,
    Reply,
    TextTooLongError,
)
from tests.wire.streams import (
    ID,
    accepted,
    answer,
    chunk,
    feed,
    final,
    gaps,
    progress,
    reasoning,
    result_of,
    tool_call,
)


def test_when_too_many_messages_are_held_the_farthest_is_missing_again() -> None:
    stream = Reassembler(max_pending=2)
    feed(stream, accepted(), chunk(4, "d"), chunk(5, "e"), chunk(3, "c"), chunk(9, "i"))
    assert stream.missing == Missing(gen=1, from_seq=1, ranges=((1, 2), (5, 9)), tail=True)
    assert feed(stream, chunk(2, "b"), chunk(1, "a")) == [chunk(s, t) for s, t in enumerate("abc", 1)]
    assert stream.missing == Missing(gen=1, from_seq=4, ranges=((4, 9),), tail=True)


def test_when_too_many_bytes_are_held_the_farthest_is_missing_again() -> None:
    size = len(chunk(5, "x" * 100).payload())
    stream = Reassembler(max_pending_bytes=2 * size)
    feed(stream, accepted(), chunk(3, "x" * 100), chunk(5, "x" * 100), chunk(4, "x"))
    assert stream.missing == Missing(gen=1, from_seq=1, ranges=((1, 2), (5, 5)), tail=True)


def test_one_message_larger_than_all_that_may_be_held_drops_no_other() -> None:
    stream = Reassembler(max_pending_bytes=1000)
    feed(stream, accepted(), chunk(3, "x"), chunk(2, "x" * 1000))
    assert stream.missing == Missing(gen=1, from_seq=1, ranges=((1, 2),), tail=True)


def test_room_is_free_again_once_held_messages_are_delivered() -> None:
    stream = Reassembler(max_pending=3, max_pending_bytes=400)
    feed(stream, accepted())
    for start in range(1, 200, 4):
        numbers = [start + 1, start + 3, start + 2, start]
        events = feed(stream, *(chunk(seq, "x") for seq in numbers))
        assert len([e for e in events if not isinstance(e, Gap)]) == 4


def test_a_held_final_needs_no_room() -> None:
    stream = Reassembler(max_pending=0)
    feed(stream, accepted(), chunk(2, "lo"), final(3, "Hello"))
    assert stream.missing == Missing(gen=1, from_seq=1, ranges=((1, 2),), tail=False)
    assert result_of(feed(stream, chunk(1, "Hel"), chunk(2, "lo"))).text == "Hello"


@pytest.mark.parametrize(
    "last", [chunk(3, "é" * 3), reasoning(3, "é" * 3), tool_call(3, "x" * 20), final(3, "é" * 30, include=True)]
)
def test_more_than_the_consumer_allows_is_a_typed_error(last: Reply) -> None:
    stream = Reassembler(max_text_bytes=25)
    assert feed(stream, chunk(0, "é" * 5), reasoning(1, "é" * 5), progress(2)) != []
    with pytest.raises(TextTooLongError, match="more than 25 bytes") as caught:
        stream.feed(last)
    assert (caught.value.limit, caught.value.id, caught.value.seq) == (25, ID, 3)
    with pytest.raises(TextTooLongError):
        stream.feed(progress(4))
    assert stream.result is None


def test_as_much_as_the_consumer_allows_is_no_error() -> None:
    stream = Reassembler(max_text_bytes=12)
    text = "é" * 3
    result = result_of(feed(stream, chunk(0, text), reasoning(1, text), final(2, text, include=True)))
    assert (result.text, result.reasoning) == (text, text)


def test_absurd_numbers_cost_nothing() -> None:
    stream = Reassembler()
    huge = 2**53 - 1
    feed(stream, accepted())
    tracemalloc.start()
    try:
        events = feed(
            stream, chunk(huge, "x"), chunk(huge - 2, "y"), *answer("z", gen=huge), chunk(huge, "x", gen=huge)
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert gaps(events)[0] == (1, huge - 1)
    assert Gap(huge, 3, huge - 1) not in events  # complete by then
    assert result_of(events).gen == huge
    assert peak < 1_000_000


def test_a_flood_of_scattered_messages_holds_no_more_than_the_bound() -> None:
    stream = Reassembler(max_pending=50)
    for seq in range(10_000, 0, -2):
        stream.feed(chunk(seq, "x"))
    missing = stream.missing
    assert missing is not None
    assert len(missing.ranges) == 51
    assert (missing.ranges[0], missing.ranges[-1]) == ((0, 1), (101, 10_000))
