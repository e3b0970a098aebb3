"""The Reassembler against a plain model of it: true streams, delivered doubled, late, never, and again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edged.wire import (
    Chunk,
    Completed,
    CorruptError,
    Final,
    Gap,
    Missing,
    Reasoning,
    Reassembler,
    Refused,
    Remainder,
    Reply,
    Restarted,
    StreamEvent,
    ToolCall,
    Unknown,
    WireError,
    WrongStreamError,
)
from tests.wire.streams import ID, accepted, chunk, final, progress, reasoning, refused, tool_call, unknown

Message: TypeAlias = Reply | Unknown
_texts = st.text(max_size=4) | st.sampled_from(["\r", "\n", "e\u0301", "🐻", "\x00", "\u2028", "a" * 50])


@st.composite
def streams(draw: st.DrawFn, gen: int = 1, *, with_calls: bool = True) -> list[Message]:
    """All messages of one true generation, in order: what the node said."""
    kinds = ["chunk", "chunk", "chunk", "progress", "reasoning", "unknown", *["tool_call"] * (2 * with_calls)]
    body: list[Message] = [accepted(gen=gen)] if draw(st.booleans()) else []
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=9)):
        seq = len(body)
        match kind:
            case "chunk":
                body.append(chunk(seq, draw(_texts), gen=gen))
            case "reasoning":
                body.append(reasoning(seq, draw(_texts), gen=gen))
            case "progress":
                body.append(progress(seq, gen=gen))
            case "unknown":
                body.append(unknown(seq, gen=gen))
            case "tool_call":
                body.append(tool_call(seq, index=seq, gen=gen))
    called = any(isinstance(message, ToolCall) for message in body)
    last = final(
        len(body),
        said(body),
        gen=gen,
        include=draw(st.sampled_from([True, True, False])),
        finish_reason=draw(st.sampled_from(["tool_calls", "length"] if called else ["stop", "length", "cancelled"])),
        reasoning_tokens=sum(isinstance(message, Reasoning) for message in body),
    )
    return [*body, last]


def said(messages: list[Message]) -> str:
    return "".join(message.text for message in messages if isinstance(message, Chunk))


@dataclass
class Model:
    """What a Reassembler should know of one generation: sets where it has bookkeeping."""

    truth: list[Message]
    max_pending: int
    next: int = 0
    held: set[int] = field(default_factory=set)
    top: int = -1
    final_seen: bool = False
    call_seen: bool = False
    duplicates: int = 0
    done: bool = False
    healed: bool = False

    @property
    def last(self) -> Final:
        final = self.truth[-1]
        assert isinstance(final, Final)
        return final

    def take(self, seq: int) -> list[StreamEvent]:
        """What the delivery of message `seq` should bring."""
        if seq < self.next or seq in self.held or (self.final_seen and seq == self.last.seq):
            self.duplicates += 1
            return []
        events: list[StreamEvent] = [Gap(self.last.gen, self.top + 1, seq - 1)] if seq > self.top + 1 else []
        self.top = max(self.top, seq)
        if seq == self.last.seq:
            self.final_seen = True
        else:
            self.held.add(seq)
            self.call_seen |= isinstance(self.truth[seq], ToolCall)
        while self.next in self.held:
            self.held.remove(self.next)
            message = self.truth[self.next]
            assert not isinstance(message, Final)
            events.append(message)
            self.next += 1
        while len(self.held) > self.max_pending:
            self.held.remove(max(self.held))
        return events + self.completion()

    def completion(self) -> list[StreamEvent]:
        """The end of the events, but for the result."""
        whole = self.next == self.last.seq
        heals = self.last.text is not None and self.last.finish_reason != "tool_calls" and not self.call_seen
        if not self.final_seen or not (whole or heals):
            return []
        self.done, self.healed = True, not whole
        rest = said(self.truth)[len(self.text) :]
        return [Remainder(self.last.gen, rest)] if rest else []

    @property
    def text(self) -> str:
        return said(self.truth[: self.next])

    @property
    def holes(self) -> set[int]:
        end = self.last.seq if self.final_seen else self.top + 1
        return set(range(self.next, end)) - self.held


class ReassemblerMachine(RuleBasedStateMachine):
    """Deliveries of up to three generations, in any order, any number of times."""

    @initialize(
        numbers=st.lists(st.sampled_from([1, 2, 3, 10**9]), min_size=1, max_size=3, unique=True).map(sorted),
        max_pending=st.sampled_from([0, 1, 3, 100]),
        knows_id=st.booleans(),
        is_refused=st.sampled_from([False] * 9 + [True]),
        data=st.data(),
    )
    def start(
        self, numbers: list[int], max_pending: int, knows_id: bool, is_refused: bool, data: st.DataObject
    ) -> None:
        self.truths = {gen: data.draw(streams(gen)) for gen in numbers}
        self.max_pending = max_pending
        self.stream = Reassembler(ID if knows_id else None, max_pending=max_pending)
        self.gen = 0  # the generation that counts
        self.model: Model | None = None
        self.completed: list[Completed] = []
        if is_refused:
            self.deliver(refused(), raw=False)

    def deliver(self, message: Message, *, raw: bool) -> None:
        events = self.stream.feed(message.payload() if raw else message)
        expected: list[StreamEvent] = []
        done = bool(self.completed)
        if not done and message.gen == 0 and self.gen:
            assert isinstance(message, Final)
            expected = [Refused(message)]
        elif not done and message.gen >= self.gen:
            if message.gen > self.gen or self.model is None:
                expected = [Restarted(message.gen)] if self.gen else []
                self.gen = message.gen
                self.model = Model(self.truths.get(message.gen, [message]), self.max_pending)
            expected += self.model.take(message.seq)
        self.completed += [event for event in events if isinstance(event, Completed)]
        if self.model is not None and self.model.done and not done:
            assert events.pop() is self.completed[-1]
        assert events == expected

    @rule(data=st.data(), raw=st.booleans())
    def any_message_arrives(self, data: st.DataObject, raw: bool) -> None:
        self.deliver(data.draw(st.sampled_from(self.truths[data.draw(st.sampled_from([*self.truths]))])), raw=raw)

    @rule(data=st.data(), raw=st.booleans())
    def a_part_of_a_generation_arrives_in_order(self, data: st.DataObject, raw: bool) -> None:
        truth = self.truths[data.draw(st.sampled_from([*self.truths]))]
        first = data.draw(st.integers(0, len(truth) - 1))
        for message in truth[first : first + data.draw(st.integers(1, 6))]:
            self.deliver(message, raw=raw)

    @precondition(lambda self: self.gen)
    @rule(raw=st.booleans())
    def the_next_message_arrives(self, raw: bool) -> None:
        assert self.model is not None
        self.deliver(self.model.truth[self.model.next], raw=raw)

    @precondition(lambda self: self.gen)
    @rule(raw=st.booleans())
    def the_final_arrives(self, raw: bool) -> None:
        assert self.model is not None
        self.deliver(self.model.last, raw=raw)

    @precondition(lambda self: self.gen)
    @rule(raw=st.booleans())
    def a_refusal_arrives(self, raw: bool) -> None:
        self.deliver(refused(), raw=raw)

    @precondition(lambda self: self.stream.id is not None)
    @rule()
    def a_message_of_another_request_arrives(self) -> None:
        with pytest.raises(WrongStreamError):
            self.stream.feed(chunk(0, "x").model_copy(update={"id": "other"}))

    @rule(payload=st.binary(max_size=10))
    def rubbish_arrives(self, payload: bytes) -> None:
        with pytest.raises(WireError):
            self.stream.feed(payload)

    @rule()
    def the_caller_resets(self) -> None:
        self.stream.reset()
        if self.model is not None and not self.model.done:
            self.model = Model(self.model.truth, self.max_pending)

    @precondition(lambda self: self.gen and not self.completed)
    @rule()
    def the_node_replays_what_is_missing(self) -> None:
        self.replay()

    def replay(self) -> None:
        """What a node does that is asked for all of `missing`: the holes, and from there to the end if it is open."""
        missing = self.stream.missing
        assert missing is not None
        assert missing.gen == self.gen
        truth = self.truths[self.gen]
        wanted = {seq for first, last in missing.ranges for seq in range(first, last + 1)}
        if missing.tail:
            wanted |= set(range(max([missing.from_seq, *wanted]), len(truth)))
        for seq in sorted(wanted):
            self.deliver(truth[seq], raw=True)

    @invariant()
    def what_was_delivered_is_a_prefix_of_the_truth(self) -> None:
        if self.model is not None and not self.completed:
            assert self.stream.text_so_far == self.model.text
            assert said(self.model.truth).startswith(self.stream.text_so_far)

    @invariant()
    def missing_is_exactly_what_is_missing(self) -> None:
        missing = self.stream.missing
        if self.completed:
            assert missing is None
        elif self.model is None:
            assert missing == Missing(gen=None, from_seq=0, ranges=(), tail=True)
        else:
            assert missing is not None
            numbers = [seq for first, last in missing.ranges for seq in range(first, last + 1)]
            assert numbers == sorted(self.model.holes)
            assert all(a[1] + 1 < b[0] for a, b in zip(missing.ranges, missing.ranges[1:], strict=False))
            assert (missing.gen, missing.from_seq) == (self.gen, self.model.next)
            assert missing.tail == (not self.model.final_seen)

    @invariant()
    def it_completes_once_and_only_with_the_truth(self) -> None:
        assert len(self.completed) <= 1
        if not self.completed:
            assert self.stream.result is None
            return
        assert self.model is not None
        result = self.stream.result
        assert result is self.completed[0].result
        assert result is not None
        truth = self.model.truth
        thoughts = [message.text for message in truth[: self.model.next] if isinstance(message, Reasoning)]
        assert result.gen == self.gen
        assert result.final == self.model.last
        assert result.text == self.stream.text_so_far == said(truth)
        assert result.reasoning == "".join(thoughts)
        assert result.healed == self.model.healed
        assert result.healed or not result.unproven
        assert result.duplicates == self.model.duplicates
        if not result.unproven:
            assert result.reasoning == "".join(m.text for m in truth if isinstance(m, Reasoning))
            assert list(result.tool_calls) == [m for m in truth if isinstance(m, ToolCall)]

    def teardown(self) -> None:
        """Whatever happened: when everything is replayed, the stream completes."""
        if not hasattr(self, "stream") or self.completed:
            return
        if not self.gen:
            self.deliver(self.truths[max(self.truths)][0], raw=False)
        for _ in range(len(self.truths[self.gen])):  # with no room to hold, a replay brings one message at least
            if not self.completed:
                self.replay()
        self.it_completes_once_and_only_with_the_truth()
        assert self.completed


ReassemblerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=25)
TestReassembler: type[Any] = ReassemblerMachine.TestCase


@given(stream=streams(with_calls=False), data=st.data())
def test_a_falsified_text_is_never_a_result(stream: list[Message], data: st.DataObject) -> None:
    """Someone changes one character of one chunk: whatever the order, the result is the truth or there is none."""
    chunks = [message for message in stream if isinstance(message, Chunk) and message.text]
    if not chunks:
        return
    victim = data.draw(st.sampled_from(chunks))
    false = ("y" if victim.text[0] == "x" else "x") + victim.text[1:]
    deliveries: list[Message] = [
        m.model_copy(update={"text": false}) if m is victim else m for m in data.draw(st.permutations(stream))
    ]
    reassembler = Reassembler()
    corrupt = False
    for message in deliveries + data.draw(st.lists(st.sampled_from(deliveries))):
        try:
            reassembler.feed(message)
        except CorruptError:
            corrupt = True
    assert corrupt == (reassembler.result is None)
    if reassembler.result is not None:
        assert reassembler.result.text == said(stream)
        assert reassembler.result.healed
