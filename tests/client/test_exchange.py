"""The rules of one exchange, with neither broker nor clock."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from edged.client import (
    CorruptStream,
    IncompleteStream,
    NodeUnavailable,
    RequestFailed,
    RequestRefused,
    Settings,
    Timeout,
)
from edged.client.errors import NotConnected
from edged.client.exchange import CANCEL_S, TIMEOUT_GRACE_S, Exchange
from edged.client.request import Order
from edged.wire.errors import ErrorCode
from edged.wire.messages import Accepted, Chunk, Error, Final, NodeState, Status
from edged.wire.stream import Completed, Remainder

SETTINGS = Settings(accept_timeout=10, timeout=100, gap_timeout=2)


def exchange(*, streamed: bool = True, timeout_s: float | None = None, settings: Settings = SETTINGS) -> Exchange:
    """An exchange that begins at 1000 s."""
    return Exchange(Order("k1", b"", timeout_s), "kitchen", streamed=streamed, settings=settings, now=1000)


def accepted(seq: int = 0, gen: int = 1) -> bytes:
    message = Accepted(id="k1", gen=gen, seq=seq, ts=1, node="kitchen", boot=1, model="m", queue_position=0)
    return message.payload()


def chunk(seq: int, text: str, gen: int = 1) -> bytes:
    return Chunk(id="k1", gen=gen, seq=seq, ts=1, text=text, n=1).payload()


def final(seq: int, text: str, *, gen: int = 1, include_text: bool = False, **more: Any) -> bytes:
    fields: dict[str, Any] = {"id": "k1", "gen": gen, "seq": seq, "ts": 1, "finish_reason": "stop", "node": "kitchen"}
    fields |= {"chars": len(text), "crc32": zlib.crc32(text.encode()), "text": text if include_text else None}
    return Final(**(fields | more)).payload()


def card(state: NodeState) -> Status:
    return Status(state=state, node="kitchen", boot=1, version="0", since=1)


def test_an_answer_completes_and_nothing_is_due_any_more() -> None:
    it = exchange()
    for n, payload in enumerate((accepted(), chunk(1, "a"), chunk(2, "b"), final(3, "ab"))):
        it.feed(payload, 1001 + n)
    assert it.result is not None
    assert it.result.text == "ab"
    assert isinstance(it.events[-1], Completed)
    assert it.deadline is None
    it.expire(9999)
    it.feed(card("lost"), 9999)
    assert it.failure is None


def test_until_something_comes_the_deadline_is_that_of_accepting() -> None:
    it = exchange()
    assert it.deadline == 1010
    it.expire(1009.9)
    assert it.failure is None
    it.expire(1010)
    assert isinstance(it.failure, NodeUnavailable)


def test_any_message_of_the_stream_shows_that_the_node_is_there() -> None:
    it = exchange()
    it.feed(card("online"), 1001)
    assert it.deadline == 1010
    it.feed(chunk(1, "overtook"), 1002)
    assert it.deadline == 1100


def test_an_ask_needs_no_more_than_a_card() -> None:
    it = exchange(streamed=False)
    assert it.deadline == 1010
    it.feed(card("busy"), 1001)
    assert it.deadline == 1100
    it.feed(final(0, "all", include_text=True), 1050)
    assert it.result is not None
    assert [event.text for event in it.events if isinstance(event, Remainder)] == ["all"]


def test_the_requests_own_timeout_leaves_the_node_time_to_say_so_itself() -> None:
    it = exchange(timeout_s=20)
    it.feed(accepted(), 1001)
    it.feed(chunk(1, "a"), 1002)
    assert it.deadline == 1020 + TIMEOUT_GRACE_S
    it.expire(1020 + TIMEOUT_GRACE_S)
    assert isinstance(it.failure, Timeout)
    assert it.failure.text_so_far == "a"


def test_without_timeouts_an_exchange_may_last_for_ever() -> None:
    it = exchange(settings=Settings(accept_timeout=None, timeout=None))
    assert it.deadline is None
    it.expire(10**9)
    assert not it.is_over
    it.cancel(2000)
    assert it.deadline == 2000 + CANCEL_S


def test_a_cancelled_stream_must_end_soon() -> None:
    it = exchange()
    it.feed(accepted(), 1001)
    it.cancel(1010)
    it.cancel(1012)  # again changes nothing
    assert it.deadline == 1010 + CANCEL_S
    it.expire(1010 + CANCEL_S)
    assert isinstance(it.failure, Timeout)
    assert "did not confirm the cancellation" in str(it.failure)


def test_what_is_missing_may_come_a_little_after_the_final() -> None:
    it = exchange()
    for payload in (accepted(), chunk(2, "b"), final(3, "ab")):
        it.feed(payload, 1001)
    assert it.deadline == 1003
    it.expire(1002.9)
    it.feed(chunk(1, "a"), 1002.95)
    assert it.result is not None
    assert it.result.text == "ab"


def test_what_never_comes_is_named() -> None:
    it = exchange()
    for payload in (accepted(), chunk(1, "a"), chunk(4, "d"), final(6, "abcdef")):
        it.feed(payload, 1001)
    it.expire(1003)
    it.expire(1005)
    assert isinstance(it.failure, IncompleteStream)
    assert "seq 2-3, 5-5 of generation 1" in str(it.failure)
    assert it.failure.text_so_far == "a"
    assert it.failure.final is not None


def test_a_gap_in_a_stream_that_never_ends_is_named_too() -> None:
    it = exchange()
    for payload in (accepted(), chunk(2, "b")):
        it.feed(payload, 1001)
    it.expire(1100)
    assert isinstance(it.failure, IncompleteStream)
    assert "seq 1-1" in str(it.failure)


def test_a_higher_generation_takes_a_final_back() -> None:
    it = exchange()
    for payload in (accepted(), final(2, "a"), accepted(gen=2)):
        it.feed(payload, 1001)
    assert it.deadline == 1100
    for payload in (chunk(1, "b", gen=2), final(2, "b", gen=2)):
        it.feed(payload, 1050)
    assert it.result is not None
    assert it.result.text == "b"


def test_an_error_counts_for_more_than_a_gap() -> None:
    it = exchange()
    error = Error.of(ErrorCode.OUT_OF_MEMORY, "no memory")
    for payload in (accepted(), final(5, "", finish_reason="error", error=error)):
        it.feed(payload, 1001)
    it.expire(1003)
    assert isinstance(it.failure, RequestFailed)
    assert it.failure.code is ErrorCode.OUT_OF_MEMORY


@pytest.mark.parametrize(("gen", "kind"), [(0, RequestRefused), (1, RequestFailed)])
def test_an_error_in_generation_0_is_a_refusal(gen: int, kind: type[RequestFailed]) -> None:
    it = exchange()
    error = Error.of(ErrorCode.DRAINING, "going down")
    it.feed(final(0, "", gen=gen, finish_reason="error", error=error), 1001)
    assert type(it.failure) is kind


def test_an_error_without_a_reason_is_an_error_all_the_same() -> None:
    it = exchange()
    it.feed(final(0, "", gen=0, finish_reason="error"), 1001)
    assert isinstance(it.failure, RequestRefused)
    assert it.failure.code is ErrorCode.INTERNAL
    assert it.result is None


def test_a_refusal_of_somebody_elses_retry_ends_nothing() -> None:
    it = exchange()
    it.feed(accepted(), 1001)
    conflict = Error.of(ErrorCode.ID_CONFLICT, "another body")
    it.feed(final(0, "", gen=0, finish_reason="error", error=conflict), 1002)
    assert not it.is_over
    it.feed(chunk(1, "a"), 1003)
    it.feed(final(2, "a"), 1003)
    assert it.result is not None


def test_a_contradiction_ends_the_stream_after_what_was_good() -> None:
    it = exchange()
    for payload in (accepted(), chunk(1, "a"), final(2, "z")):
        it.feed(payload, 1001)
    assert isinstance(it.failure, CorruptStream)
    assert [event.text for event in it.events if isinstance(event, Chunk)] == ["a"]


def test_what_came_with_the_contradiction_is_given_all_the_same() -> None:
    it = exchange()
    for payload in (accepted(), chunk(2, "b"), final(3, "zz"), chunk(1, "a")):
        it.feed(payload, 1001)
    assert isinstance(it.failure, CorruptStream)
    assert [event.text for event in it.events if isinstance(event, Chunk)] == ["a", "b"]


@pytest.mark.parametrize("state", ["offline", "lost"])
def test_a_node_that_is_gone_for_too_long_fails_the_exchange(state: NodeState) -> None:
    it = exchange(settings=Settings(away_timeout=20))
    it.feed(accepted(), 1001)
    it.feed(card(state), 1002)
    it.feed(card(state), 1010)
    assert (it.deadline, it.is_over) == (1022, False)
    it.expire(1022)
    assert isinstance(it.failure, NodeUnavailable)
    assert it.failure.state == state


def test_a_node_that_comes_back_goes_on() -> None:
    it = exchange(settings=Settings(away_timeout=20))
    for payload in (accepted(), chunk(1, "a")):
        it.feed(payload, 1001)
    it.feed(card("lost"), 1002)
    it.feed(card("loading"), 1010)
    it.expire(1030)
    assert not it.is_over
    it.feed(card("lost"), 1031)
    assert it.deadline == 1051
    for payload in (chunk(1, "a"), chunk(2, "b"), final(3, "ab")):
        it.feed(payload, 1040)
    assert it.result is not None
    assert it.result.text == "ab"


def test_what_is_missing_is_asked_for_once() -> None:
    it = exchange()
    for payload in (accepted(), chunk(2, "b"), final(3, "ab")):
        it.feed(payload, 1001)
    assert it.wanted() is None
    it.expire(1003)
    wanted = it.wanted()
    assert wanted is not None
    assert (wanted.gen, wanted.from_seq, it.wanted(), it.deadline) == (1, 1, None, 1005)
    it.feed(chunk(1, "a"), 1004)
    assert it.result is not None
    assert it.result.text == "ab"


@pytest.mark.parametrize("state", ["loading", "online", "busy", "paused", "draining"])
def test_a_node_that_lives_does_not(state: NodeState) -> None:
    it = exchange()
    it.feed(card(state), 1002)
    assert not it.is_over


def test_what_ends_it_from_outside_is_kept_as_it_is() -> None:
    it = exchange()
    lost = NotConnected("localhost:1883", "gone")
    it.feed(lost, 1001)
    it.feed(final(0, "", gen=0), 1002)
    assert it.failure is lost
