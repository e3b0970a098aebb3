"""One request as its consumer sees it: what came of it, put together, and proved."""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import dataclass, field

from edged.wire.assembly import Reassembler
from edged.wire.errors import ErrorCode, WireError
from edged.wire.messages import Accepted, Chunk, Final, Reply, Unknown, parse_reply
from edged.wire.stream import AssemblyError, Gap, Result
from edged.wire.topics import Kind


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and its answer.

    `feed` takes every message of the reply topic as it comes; besides the Reassembler, which works for any consumer, it
    compares every copy with the first to the byte, and sums the text up by itself.

    Attributes:
        body: the payload that is published, and published again, the same to the byte.
        cancel_after: ask the node to end it when so many chunks have come; None = never.
        pause_after: ask it to pause then, and a little later to go on; None = never.
        asked: how often it was published.
        heard: when something new of it came last, or it was published first, monotonic seconds.
        poked: when it was last published, or a replay asked for, monotonic seconds.
        poke_s: how long a silence is endured before that.
        ask_again: it has to be published again because of what the node said, not before this time, monotonic seconds.
        replays: how often a replay was asked for.
        cancelled: the cancel was sent.
        resume_at: it was asked to pause, and is to go on then, monotonic seconds; infinite = it was asked to.
        gaps: holes that opened in the stream, and what was said before a replay was asked for and came after.
        wrong: what breaks a promise, in words.
    """

    id: str
    kind: Kind
    body: bytes
    cancel_after: int | None = None
    pause_after: int | None = None
    asked: int = 0
    heard: float = 0.0
    poked: float = 0.0
    poke_s: float = 0.0
    ask_again: float | None = None
    replays: int = 0
    cancelled: bool = False
    resume_at: float | None = None
    chunks: int = 0
    duplicates: int = 0
    gaps: int = 0
    refusals: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    result: Result | None = None
    finals: int = 0
    _replay_asked: float = 0.0  # Unix seconds; 0 = something new has come since
    _copies: dict[tuple[int, int], int] = field(default_factory=dict)
    _texts: dict[int, str] = field(default_factory=dict)
    _assembly: Reassembler = field(init=False)

    def __post_init__(self) -> None:
        self._assembly = Reassembler(self.id)

    @property
    def begun(self) -> bool:
        """Whether a node has it: something of an execution has come."""
        return bool(self._copies)

    @property
    def done(self) -> bool:
        """Whether all of it is here, or never will be because it is broken."""
        return self.result is not None or bool(self.wrong)

    @property
    def replay(self) -> bytes:
        """The `ctl` message that asks for what is missing."""
        missing = self._assembly.missing
        order: dict[str, object] = {"op": "replay", "from_seq": missing.from_seq if missing else 0}
        if missing and missing.gen:
            order["gen"] = missing.gen
        return json.dumps(order).encode()

    def replay_asked(self) -> None:
        """A replay is asked for now."""
        self.replays += 1
        self._replay_asked = time.time()

    def feed(self, payload: bytes, now: float) -> None:
        """Take a message that came; `now` is monotonic seconds."""
        try:
            message = parse_reply(payload)
        except WireError as error:
            self.wrong.append(str(error))
            return
        if message.id != self.id:
            self.wrong.append(f"a message of {message.id!r} came on its topic")
        elif message.gen == 0:
            self._refused(message, now)
        elif self._is_new(message, payload):
            self.heard = now
            self._put_together(message)

    def _refused(self, message: Reply | Unknown, now: float) -> None:
        """The node did not take it, or does not know it: it is asked again as a consumer should, or it is wrong."""
        error = message.error if isinstance(message, Final) else None
        if error is None:
            self.wrong.append(f"generation 0 with a {message.type} that is no refusal")
        elif self.done:
            return  # the answer to a cancel or a replay that was late
        elif error.code is ErrorCode.UNKNOWN_REQUEST and self.begun:
            self.wrong.append(f"the node had begun it and knows it no more: {error.message}")
        elif error.code is ErrorCode.UNKNOWN_REQUEST or error.retryable:
            # Unknown: the broker forgot the request on its way, and a cancel came through.
            self.refusals.append(error.code)
            self.ask_again = now + (error.retry_after_ms or 200) / 1000
        else:
            self.wrong.append(f"refused: {error.code}: {error.message}")

    def _is_new(self, message: Reply | Unknown, payload: bytes) -> bool:
        key, crc = (message.gen, message.seq), zlib.crc32(payload)
        if key in self._copies:
            self.duplicates += 1
            if self._copies[key] != crc:
                self.wrong.append(f"two different messages have gen {message.gen}, seq {message.seq}")
            return False
        self._copies[key] = crc
        if message.gen > 1:
            # The machine does not go down here, so whatever dies, a stream goes on in its generation.
            self.wrong.append(f"it was begun again, as generation {message.gen}")
        return True

    def _put_together(self, message: Reply | Unknown) -> None:
        if self._replay_asked:
            self.gaps += message.ts < self._replay_asked
            self._replay_asked = 0.0
        if self.result is not None and message.seq > self.result.final.seq:
            self.wrong.append(f"a {message.type} with seq {message.seq} came after the final")
        if isinstance(message, Final):
            self.finals += 1
            if self.finals > 1:
                self.wrong.append("it has two finals")
        if isinstance(message, Chunk):
            self.chunks += 1
            self._texts[message.seq] = message.text
        if self.kind is Kind.ASK and not isinstance(message, Final):
            self.wrong.append(f"a request for one message was answered by a {message.type}")
        if message.seq == 0 and not isinstance(message, Accepted | Final):
            self.wrong.append(f"the stream begins with a {message.type}")
        try:
            events = self._assembly.feed(message)
        except AssemblyError as error:
            self.wrong.append(str(error))
            return
        self.gaps += sum(isinstance(event, Gap) for event in events)
        if self._assembly.result is not None and self.result is None:
            self.result = self._assembly.result
            self._prove(self.result)

    def _prove(self, result: Result) -> None:
        """Once more and by hand: the text is what the final says, and the answer ended as it may."""
        final, text = result.final, result.text
        if (len(text), zlib.crc32(text.encode())) != (final.chars, final.crc32):
            self.wrong.append(f"{len(text)} characters came, and the final says {final.chars}, or another crc32")
        if not result.healed and self.kind is Kind.REQ:
            joined = "".join(self._texts[seq] for seq in sorted(self._texts))
            if joined != text:
                self.wrong.append("the chunks are not the text")
        if final.finish_reason == "cancelled" and not self.cancelled:
            self.wrong.append("it ended as cancelled, and nobody asked for that")
        if final.error is not None:
            self.wrong.append(f"it ended with {final.error.code}: {final.error.message}")
        self._texts.clear()
