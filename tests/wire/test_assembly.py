from __future__ import annotations

import itertools
import tracemalloc
import zlib

import pytest

from edged.wire import (
    AssemblyError,
    Completed,
    CorruptError,
    ErrorCode,
    FinishReason,
    Gap,
    Missing,
    Reassembler,
    Refused,
    Remainder,
    Reply,
    Restarted,
    Result,
    StreamEvent,
    TextTooLongError,
    Unknown,
    WireError,
    WrongStreamError,
)
from tests.wire.streams import (
    ID,
    accepted,
    answer,
    chunk,
    final,
    progress,
    reasoning,
    refused,
    tool_call,
    unknown,
)


def feed(stream: Reassembler, *messages: Reply | Unknown) -> list[StreamEvent]:
    return [event for message in messages for event in stream.feed(message)]


def result_of(events: list[StreamEvent]) -> Result:
    """The result of a stream that has just completed, as its last event and only once."""
    (completed,) = [event for event in events if isinstance(event, Completed)]
    assert events[-1] is completed
    return completed.result


def gaps(events: list[StreamEvent]) -> list[tuple[int, int]]:
    return [(event.first, event.last) for event in events if isinstance(event, Gap)]


# --- in order -------------------------------------------------------------------------------------------------------


def test_a_stream_in_order_is_delivered_as_it_comes_and_completes() -> None:
    messages: list[Reply | Unknown] = [
        accepted(),
        progress(1),
        reasoning(2, "hm"),
        unknown(3),
        chunk(4, "Hel"),
        chunk(5, "lo 🐻"),
        tool_call(6),
        final(7, "Hello 🐻", finish_reason="tool_calls"),
    ]
    stream = Reassembler(ID)
    for message in messages[:-1]:
        assert stream.feed(message) == [message]
        assert stream.result is None
    result = result_of(stream.feed(messages[-1]))
    assert result == Result(
        id=ID,
        gen=1,
        text="Hello 🐻",
        reasoning="hm",
        tool_calls=(tool_call(6),),
        final=final(7, "Hello 🐻", finish_reason="tool_calls"),
        healed=False,
        unproven=frozenset(),
        duplicates=0,
    )
    assert stream.result is result
    assert (result.finish_reason, result.error) == ("tool_calls", None)


def test_payloads_from_the_wire_are_fed_as_they_are() -> None:
    stream = Reassembler(ID)
    events = [event for message in answer("Hel", "lo") for event in stream.feed(message.payload())]
    assert events[:-1] == answer("Hel", "lo")[:-1]
    assert result_of(events).text == "Hello"


def test_the_text_is_what_the_chunks_said_to_the_last_line_ending() -> None:
    assert (
        result_of(feed(Reassembler(), *answer("a\r", "\nb\r\n", "\u2028\x00", "", "\r"))).text
        == "a\r\nb\r\n\u2028\x00\r"
    )


def test_an_answer_that_is_not_streamed_comes_as_one_remainder() -> None:
    assert feed(Reassembler(), final(0, "Hello", include=True))[0] == Remainder(1, "Hello")
    result = result_of(feed(Reassembler(), final(0, "Hello", include=True)))
    assert (result.text, result.healed) == ("Hello", False)


def test_an_answer_that_is_not_streamed_may_follow_progress() -> None:
    result = result_of(feed(Reassembler(), accepted(), progress(1), final(2, "Hello", include=True)))
    assert (result.text, result.healed) == ("Hello", False)


def test_an_empty_answer_completes_without_a_remainder() -> None:
    assert [type(event) for event in feed(Reassembler(), final(0, "", include=True))] == [Completed]


@pytest.mark.parametrize("reason", ["cancelled", "error", "length"])
def test_what_was_said_before_the_end_is_kept_whatever_the_end(reason: FinishReason) -> None:
    result = result_of(feed(Reassembler(), accepted(), chunk(1, "Hel"), final(2, "Hel", finish_reason=reason)))
    assert (result.text, result.finish_reason) == ("Hel", reason)
    assert (result.error is not None) == (reason == "error")


# --- copies ---------------------------------------------------------------------------------------------------------


def test_copies_are_delivered_once_and_counted() -> None:
    stream = Reassembler()
    one, two, three, last = accepted(), chunk(1, "Hel"), chunk(2, "lo"), final(3, "Hello")
    assert feed(stream, one, one, two, one, two) == [one, two]
    assert gaps(feed(stream, last, last, one)) == [(2, 2)]
    assert result_of(feed(stream, three)).duplicates == 5


def test_copies_of_held_messages_count_as_copies() -> None:
    stream = Reassembler()
    feed(stream, chunk(2, "lo"), chunk(2, "lo"), chunk(1, "Hel"), accepted())
    assert result_of(feed(stream, final(3, "Hello"))).duplicates == 1


def test_a_copy_may_be_stamped_anew() -> None:
    stream = Reassembler()
    late = chunk(2, "lo").model_copy(update={"ts": 1.0})
    feed(stream, accepted(), chunk(2, "lo"), late, final(3, "Hello"))
    feed(stream, final(3, "Hello").model_copy(update={"ts": 2.0}))
    assert result_of(feed(stream, chunk(1, "Hel"))).duplicates == 2


def test_after_completion_everything_is_passed_over() -> None:
    stream = Reassembler()
    feed(stream, *answer("Hello"))
    result = stream.result
    later = [*answer("Hello"), chunk(9, "x"), final(2, "y"), *answer("other", gen=2), refused()]
    assert feed(stream, *later) == []
    assert stream.result is result
    assert stream.text_so_far == "Hello"
    assert stream.missing is None


# --- order and gaps -------------------------------------------------------------------------------------------------


def test_any_order_gives_the_same_events() -> None:
    messages = answer("a", "b", "c")
    for order in itertools.permutations(messages):
        events: list[StreamEvent] = [e for e in feed(Reassembler(), *order) if not isinstance(e, Gap)]
        assert events[:-1] == messages[:-1]
        assert result_of(events).text == "abc"


def test_a_hole_is_said_once_when_it_is_found() -> None:
    stream = Reassembler()
    assert feed(stream, accepted(), chunk(3, "d")) == [accepted(), Gap(1, 1, 2)]
    assert feed(stream, chunk(4, "e"), chunk(3, "d")) == []
    assert feed(stream, chunk(7, "h")) == [Gap(1, 5, 6)]
    assert feed(stream, chunk(2, "c")) == []
    assert feed(stream, chunk(1, "b")) == [chunk(1, "b"), chunk(2, "c"), chunk(3, "d"), chunk(4, "e")]
    assert stream.text_so_far == "bcde"


def test_missing_says_what_a_replay_has_to_bring() -> None:
    stream = Reassembler()
    assert stream.missing == Missing(gen=None, from_seq=0, ranges=(), tail=True)
    feed(stream, accepted(gen=3))
    assert stream.missing == Missing(gen=3, from_seq=1, ranges=(), tail=True)
    feed(stream, chunk(3, "c", gen=3), chunk(4, "d", gen=3), chunk(9, "i", gen=3))
    assert stream.missing == Missing(gen=3, from_seq=1, ranges=((1, 2), (5, 8)), tail=True)
    feed(stream, final(12, "abcdefghijk", gen=3))
    assert stream.missing == Missing(gen=3, from_seq=1, ranges=((1, 2), (5, 8), (10, 11)), tail=False)
    feed(stream, *(chunk(seq, chr(96 + seq), gen=3) for seq in (1, 2, 5, 6, 7, 8)))
    assert stream.missing == Missing(gen=3, from_seq=10, ranges=((10, 11),), tail=False)
    events = feed(stream, chunk(10, "j", gen=3), chunk(11, "k", gen=3))
    assert result_of(events).text == "abcdefghijk"
    assert stream.missing is None


def test_a_lost_tail_leaves_the_stream_incomplete() -> None:
    stream = Reassembler()
    feed(stream, *answer("Hel", "lo")[:-1])
    assert (stream.result, stream.final, stream.text_so_far) == (None, None, "Hello")
    assert stream.missing == Missing(gen=1, from_seq=3, ranges=(), tail=True)


def test_an_early_final_says_how_the_request_ended_but_completes_nothing() -> None:
    stream = Reassembler()
    assert gaps(feed(stream, accepted(), final(2, "Hello"))) == [(1, 1)]
    assert stream.final == final(2, "Hello")
    assert stream.result is None
    assert stream.text_so_far == ""


# --- healing --------------------------------------------------------------------------------------------------------


def test_a_final_with_text_heals_any_gap_and_shows_the_rest() -> None:
    stream = Reassembler()
    events = feed(stream, accepted(), chunk(1, "Hel"), chunk(3, " Wor"), final(5, "Hello World", include=True))
    assert events[:-1] == [accepted(), chunk(1, "Hel"), Gap(1, 2, 2), Gap(1, 4, 4), Remainder(1, "lo World")]
    result = result_of(events)
    assert (result.text, result.healed, result.unproven) == ("Hello World", True, frozenset())


def test_a_final_alone_heals_the_whole_stream() -> None:
    assert result_of(feed(Reassembler(), final(9, "Hello", include=True))).text == "Hello"


def test_a_healed_gap_that_swallowed_no_text_has_no_remainder() -> None:
    stream = Reassembler()
    events = feed(stream, accepted(), chunk(1, "Hello"), final(3, "Hello", include=True))
    assert not [event for event in events if isinstance(event, Remainder)]
    assert result_of(events).healed


def test_reasoning_that_may_be_lost_in_a_healed_gap_is_flagged() -> None:
    lost = final(4, "Hello", include=True, reasoning_tokens=7)
    result = result_of(feed(Reassembler(), accepted(), reasoning(1, "hm"), reasoning(3, "so"), lost))
    assert result.reasoning == "hm"
    assert result.unproven == {"reasoning"}
    uncounted = lost.model_copy(update={"usage": None})
    assert result_of(feed(Reassembler(), uncounted)).unproven == {"reasoning"}


@pytest.mark.parametrize("reason", ["length", "cancelled", "error"])
def test_tool_calls_that_may_be_lost_in_a_healed_gap_are_flagged(reason: FinishReason) -> None:
    result = result_of(feed(Reassembler(), final(4, "Hello", include=True, finish_reason=reason)))
    assert result.unproven == {"tool_calls"}


def test_text_does_not_heal_a_stream_that_ends_in_tool_calls() -> None:
    stream = Reassembler()
    feed(stream, accepted(), chunk(1, "Hello"), final(3, "Hello", include=True, finish_reason="tool_calls"))
    assert stream.result is None
    assert stream.missing == Missing(gen=1, from_seq=2, ranges=((2, 2),), tail=False)
    assert result_of(feed(stream, tool_call(2))).tool_calls == (tool_call(2),)


@pytest.mark.parametrize("held", [0, 1])
def test_text_does_not_heal_a_gap_beside_a_tool_call(held: int) -> None:
    stream = Reassembler()
    seen = tool_call(0 + 2 * held)
    feed(stream, seen, final(3, "Hello", include=True, finish_reason="length"))
    assert stream.result is None


def test_a_final_whose_text_goes_on_otherwise_than_the_chunks_is_corrupt() -> None:
    stream = Reassembler()
    feed(stream, accepted(), chunk(1, "Jell"))
    with pytest.raises(CorruptError, match="not the text of the chunks"):
        stream.feed(final(3, "Hello", include=True))
    assert stream.result is None


# --- proof ----------------------------------------------------------------------------------------------------------


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


# --- generations ----------------------------------------------------------------------------------------------------


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


# --- what does not belong here --------------------------------------------------------------------------------------


def test_messages_of_another_request_are_refused_and_change_nothing() -> None:
    stream = Reassembler("k2")
    with pytest.raises(WrongStreamError, match="request 'k1' in the stream of 'k2'") as caught:
        stream.feed(accepted())
    assert (caught.value.id, caught.value.got) == ("k2", "k1")
    assert (stream.id, stream.gen) == ("k2", None)


def test_without_an_id_the_first_message_gives_it() -> None:
    stream = Reassembler()
    feed(stream, accepted())
    assert stream.id == ID
    with pytest.raises(WrongStreamError):
        stream.feed(chunk(1, "x").model_copy(update={"id": "k2"}))
    assert result_of(feed(stream, *answer("Hello"))).text == "Hello"


@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff", "hello"])
def test_what_is_no_message_is_refused_and_changes_nothing(payload: bytes | str) -> None:
    stream = Reassembler()
    feed(stream, accepted())
    with pytest.raises(WireError, match="not a message of a reply stream"):
        stream.feed(payload)
    assert result_of(feed(stream, *answer("Hello"))).text == "Hello"


def test_all_errors_have_one_root() -> None:
    for error in (WrongStreamError, CorruptError, TextTooLongError):
        assert issubclass(error, AssemblyError)
        assert issubclass(error, WireError)


# --- bounds ---------------------------------------------------------------------------------------------------------


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
