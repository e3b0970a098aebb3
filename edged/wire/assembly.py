"""Putting a reply stream together again (docs/protocol.md, sections 3 to 5), without I/O and without a clock.

A `Reassembler` takes the messages of ONE stream as MQTT brings them: doubled, with gaps, out of order, of several
generations. It gives them back once and in order, says what is missing, and completes only with a text that the final
proves. What it has delivered is at every moment a prefix of what the node said in the current generation.
"""

from __future__ import annotations

import zlib
from bisect import insort
from collections.abc import Callable
from functools import partial
from io import StringIO
from typing import NoReturn

from edged.wire.messages import Chunk, Final, Reasoning, Reply, ToolCall, Unknown, parse_reply
from edged.wire.stream import (
    AssemblyError,
    Completed,
    CorruptError,
    Gap,
    Missing,
    Piece,
    Refused,
    Remainder,
    Restarted,
    Result,
    StreamEvent,
    TextTooLongError,
    Unproven,
    WrongStreamError,
)

#: The most messages held because something before them is missing, and their most bytes (as JSON) together.
MAX_PENDING, MAX_PENDING_BYTES = 1024, 4 * 1024 * 1024
#: The most bytes of UTF-8 kept of one stream: text, reasoning and tool calls together; and of the final's `text`.
MAX_TEXT_BYTES = 16 * 1024 * 1024


class Reassembler:
    """The state of one reply stream.

    A failed generation (`CorruptError`, `TextTooLongError`) stays failed: its messages raise again until a higher
    generation comes or the caller resets. A completed stream ignores what still comes, so a retry of the same id
    after a refusal wants a new Reassembler.

    Bounds: when more than `max_pending` messages or `max_pending_bytes` would have to be held, the farthest are dropped
    and count as missing. More than `max_text_bytes` is a `TextTooLongError`. Numbers cost nothing, however large.
    """

    def __init__(
        self,
        id: str | None = None,  # noqa: A002 - the contract's name
        *,
        max_pending: int = MAX_PENDING,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        max_text_bytes: int = MAX_TEXT_BYTES,
    ) -> None:
        """Begin with nothing.

        Args:
            id: the request's id; None = that of the first message.
            max_pending: messages held because something before them is missing.
            max_pending_bytes: their size together, as JSON.
            max_text_bytes: UTF-8 of text, reasoning and tool calls together; and of the final's `text`.
        """
        self._id = id
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        self._max_text_bytes = max_text_bytes
        self._gen: int | None = None
        self._result: Result | None = None
        self._begin(None)

    def _begin(self, gen: int | None) -> None:
        """Nothing has been seen of generation `gen`."""
        self._gen = gen
        self._next = 0  # the seq to deliver next
        self._top = -1  # the highest seq seen, delivered or not
        self._final: Final | None = None
        self._failure: Callable[..., AssemblyError] | None = None
        self._drop_pending()
        self._text, self._chars, self._crc = StringIO(newline=""), 0, 0
        self._reasoning = StringIO(newline="")
        self._tool_calls: list[ToolCall] = []
        self._has_tool_calls = False  # one has come, delivered or not
        self._kept_bytes = 0
        self._duplicates = 0

    def _drop_pending(self) -> None:
        self._pending: dict[int, Piece] = {}  # held messages by seq
        self._sizes: dict[int, int] = {}  # theirs, in bytes
        self._order: list[int] = []  # the keys of both, ascending
        self._pending_bytes = 0

    @property
    def id(self) -> str | None:
        """The request's id; None until it is known."""
        return self._id

    @property
    def gen(self) -> int | None:
        """The current generation; None before the first message."""
        return self._gen

    @property
    def result(self) -> Result | None:
        """The whole stream; None until it is complete."""
        return self._result

    @property
    def final(self) -> Final | None:
        """The final as it came, perhaps ahead of what is missing: it says how the request ended, not what it said."""
        return self._final

    @property
    def text_so_far(self) -> str:
        """The text delivered in the current generation: a part of the answer unless `result` is there. O(length)."""
        return self._text.getvalue() if self._result is None else self._result.text

    @property
    def missing(self) -> Missing | None:
        """What to ask the node for when the stream stalls; None once it is complete. After a failure: everything."""
        if self._result is not None:
            return None
        if self._failure is not None:
            return Missing(self._gen or None, 0, (), tail=True)
        last = self._top if self._final is None else self._final.seq - 1
        holes, at = [], self._next
        for seq in self._order:
            if seq > at:
                holes.append((at, seq - 1))
            at = seq + 1
        if at <= last:
            holes.append((at, last))
        return Missing(self._gen, self._next, tuple(holes), tail=self._final is None)

    def reset(self) -> None:
        """Forget what came of the current generation, a failure included: for a replay from `seq` 0.

        What was delivered will be delivered again. A completed stream stays complete.
        """
        if self._result is None:
            self._begin(self._gen)

    def feed(self, message: Reply | Unknown | bytes | str) -> list[StreamEvent]:
        """Take one message and return what it brings, in order; nothing for a copy or a message held back.

        Raises:
            WireError: the payload is no message of a reply stream; the state is unchanged.
            WrongStreamError: it belongs to another request; the state is unchanged.
            CorruptError: the stream contradicts itself or its final's `chars` and `crc32`.
            TextTooLongError: the answer is longer than `max_text_bytes`.
        """
        if isinstance(message, bytes | str):
            message = parse_reply(message)
        if self._id is None:
            self._id = message.id
        if message.id != self._id:
            raise WrongStreamError(id=self._id, got=message.id, gen=message.gen, seq=message.seq)
        events: list[StreamEvent] = []
        if self._result is None and self._is_current(message, events):
            if self._failure is not None:
                raise self._failure(events=tuple(events))
            if not self._is_copy(message, events):
                self._place(message, events)
                self._finish(message, events)
        return events

    def _is_current(self, message: Reply | Unknown, events: list[StreamEvent]) -> bool:
        """Follow a higher generation; whether the message belongs to the one that counts now."""
        gen, current = message.gen, self._gen
        if gen == 0 and current:
            if isinstance(message, Final):
                events.append(Refused(message))
            return False
        if current is None or gen > current:
            if current:
                events.append(Restarted(gen))
            self._begin(gen)
        return gen == self._gen

    def _is_copy(self, message: Reply | Unknown, events: list[StreamEvent]) -> bool:
        """Whether a message of the current generation has come before; one with other content is corrupt."""
        seq = message.seq
        held = self._final if self._final is not None and self._final.seq == seq else self._pending.get(seq)
        if held is not None and not _same(held, message):
            self._fail(f"two different messages have seq {seq}: {held.type} and {message.type}", message, events)
        if held is None and (seq >= self._next or isinstance(message, Final)):
            return False
        self._duplicates += 1
        return True

    def _place(self, message: Reply | Unknown, events: list[StreamEvent]) -> None:
        """Deliver or hold a message of the current generation that is new."""
        seq = message.seq
        if message.gen == 0 and (seq != 0 or not isinstance(message, Final)):
            self._fail(f"generation 0 is one final with seq 0, not a {message.type} with seq {seq}", message, events)
        if self._final is not None and seq > self._final.seq:
            self._fail(f"a {message.type} with seq {seq}, but the final has {self._final.seq}", message, events)
        if isinstance(message, Final) and seq <= self._top:
            self._fail(f"the final has seq {seq}, but a message with seq {self._top} came before", message, events)
        if seq > self._top + 1:
            events.append(Gap(message.gen, self._top + 1, seq - 1))
        self._top = max(self._top, seq)
        self._has_tool_calls |= isinstance(message, ToolCall)
        if isinstance(message, Final):
            self._final = message
        elif seq > self._next:
            self._hold(message)
        else:
            self._deliver(message, events)
            self._deliver_pending(events)

    def _hold(self, message: Piece) -> None:
        """Keep a message whose turn has not come; over the bounds, drop the farthest."""
        size = len(message.payload())
        if size > self._max_pending_bytes:
            return
        insort(self._order, message.seq)
        self._pending[message.seq] = message
        self._sizes[message.seq] = size
        self._pending_bytes += size
        while len(self._order) > self._max_pending or self._pending_bytes > self._max_pending_bytes:
            farthest = self._order.pop()
            del self._pending[farthest]
            self._pending_bytes -= self._sizes.pop(farthest)

    def _deliver_pending(self, events: list[StreamEvent]) -> None:
        """Deliver what was held, up to the next hole."""
        count = 0
        for seq in self._order:
            if seq != self._next:
                break
            self._pending_bytes -= self._sizes.pop(seq)
            self._deliver(self._pending.pop(seq), events)
            count += 1
        del self._order[:count]

    def _deliver(self, message: Piece, events: list[StreamEvent]) -> None:
        """Deliver the message whose turn it is, and keep what belongs to the result."""
        match message:
            case Chunk(text=text):
                data = text.encode()
                self._keep(len(data), message, events)
                self._text.write(text)
                self._chars += len(text)
                self._crc = zlib.crc32(data, self._crc)
            case Reasoning(text=text):
                self._keep(len(text.encode()), message, events)
                self._reasoning.write(text)
            case ToolCall():
                self._keep(len(message.payload()), message, events)
                self._tool_calls.append(message)
        self._next += 1
        events.append(message)

    def _keep(self, size: int, message: Reply | Unknown, events: list[StreamEvent]) -> None:
        """Count `size` bytes more towards the bound."""
        self._kept_bytes += size
        if self._kept_bytes > self._max_text_bytes:
            self._fail_with(partial(TextTooLongError, limit=self._max_text_bytes), message, events)

    def _finish(self, message: Reply | Unknown, events: list[StreamEvent]) -> None:
        """Complete the stream if the final is here and nothing is missing, or its text stands in for what is."""
        final = self._final
        if final is None:
            return
        gap = self._next < final.seq
        if gap and (final.text is None or final.finish_reason == "tool_calls" or self._has_tool_calls):
            return
        so_far, chars, crc = self._text.getvalue(), self._chars, self._crc
        text = so_far if final.text is None else final.text
        if final.text is not None:
            data = text.encode()
            if len(data) > self._max_text_bytes:
                self._fail_with(partial(TextTooLongError, limit=self._max_text_bytes), message, events)
            chars, crc = len(text), zlib.crc32(data)
        if (chars, crc) != (final.chars, final.crc32):
            found = f"{chars} characters with CRC {crc}"
            self._fail(
                f"the final says {final.chars} characters with CRC {final.crc32}, it is {found}", message, events
            )
        # Without a gap the chunks are the whole text, unless there were none: then the final alone brings it.
        if not text.startswith(so_far) or (so_far and not gap and text != so_far):
            self._fail("the final's text is not the text of the chunks", message, events)
        if text != so_far:
            events.append(Remainder(final.gen, text[len(so_far) :]))
        self._result = Result(
            id=final.id,
            gen=final.gen,
            text=text,
            reasoning=self._reasoning.getvalue(),
            tool_calls=tuple(self._tool_calls),
            final=final,
            healed=gap,
            unproven=_unproven(final) if gap else frozenset(),
            duplicates=self._duplicates,
        )
        self._drop_pending()
        self._text, self._reasoning = StringIO(), StringIO()  # the result holds them now
        events.append(Completed(self._result))

    def _fail(self, reason: str, message: Reply | Unknown, events: list[StreamEvent]) -> NoReturn:
        text = (
            f"the stream of {self._id!r}, generation {message.gen}, is corrupt: {reason}; ask for a replay from seq 0"
        )
        self._fail_with(partial(CorruptError, text), message, events)

    def _fail_with(
        self, error: Callable[..., AssemblyError], message: Reply | Unknown, events: list[StreamEvent]
    ) -> NoReturn:
        """Give this generation up: now, and whenever another of its messages comes."""
        self._failure = partial(error, id=message.id, gen=message.gen, seq=message.seq)
        self._drop_pending()
        raise self._failure(events=tuple(events))


def _same(one: Reply | Unknown, other: Reply | Unknown) -> bool:
    """Whether one is a copy of the other; a node that sends a message again may stamp it anew."""
    return one.payload() == other.model_copy(update={"ts": one.ts}).payload()


def _unproven(final: Final) -> frozenset[Unproven]:
    """What a final's text does not prove to be whole after a gap."""
    unproven: set[Unproven] = set()
    if final.usage is None or final.usage.reasoning_tokens:
        unproven.add("reasoning")
    if final.finish_reason != "stop":  # `stop` says that the model called nothing
        unproven.add("tool_calls")
    return frozenset(unproven)
