"""Messages in any order, doubled or missing, come together to the text that was sent."""

from __future__ import annotations

import itertools

import pytest

from edged.wire import (
    AssemblyError,
    Completed,
    CorruptError,
    FinishReason,
    Gap,
    Missing,
    Reassembler,
    Remainder,
    Reply,
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
    feed,
    final,
    gaps,
    progress,
    reasoning,
    refused,
    result_of,
    tool_call,
    unknown,
)

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
