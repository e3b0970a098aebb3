"""One request and its reply, as rules alone: what has arrived and what time it is go in, events and an end come out."""

from __future__ import annotations

from collections import deque

from edged.client.errors import (
    CorruptStream,
    EdgedError,
    IncompleteStream,
    NodeUnavailable,
    RequestFailed,
    RequestRefused,
    Timeout,
)
from edged.client.inbox import Item
from edged.client.presence import GONE
from edged.client.request import Order
from edged.client.settings import Settings
from edged.wire.assembly import Reassembler
from edged.wire.errors import ErrorCode, WireError
from edged.wire.messages import Error, Final, NodeState, Status
from edged.wire.stream import AssemblyError, Completed, Missing, Result, StreamEvent, TextTooLongError, WrongStreamError

#: How much longer than the request's own `timeout_s` to wait: the node's answer says more than an error made here.
TIMEOUT_GRACE_S = 5.0
#: How long the final may take after a cancellation, seconds.
CANCEL_S = 5.0


class Exchange:
    """The state of one exchange. Does no I/O and has no clock.

    Attributes:
        events: what came, in order and each once; the reader takes from the left.
        result: the whole answer, once it is there and not an error.
        failure: why there will be none.
    """

    def __init__(self, order: Order, node: str, *, streamed: bool, settings: Settings, now: float) -> None:
        """The request is sent now.

        Args:
            order: the request.
            node: the node's name.
            streamed: whether `accepted` and chunks are expected, or the final alone.
            settings: for how long to wait.
            now: seconds of the monotonic clock, as in all methods.
        """
        self.events: deque[StreamEvent] = deque()
        self.result: Result | None = None
        self.failure: EdgedError | None = None
        self._node = node
        self._streamed = streamed
        self._assembler = Reassembler(order.id)
        self._accept_s = settings.accept_timeout
        self._gap_s = settings.gap_timeout
        self._away_s = settings.away_timeout
        self._timeout_s = settings.timeout if order.timeout_s is None else order.timeout_s + TIMEOUT_GRACE_S
        self._end_by = None if self._timeout_s is None else now + self._timeout_s
        self._accept_by = None if self._accept_s is None else now + self._accept_s
        self._settle_by: float | None = None
        self._back_by: float | None = None
        self._away: NodeState | None = None
        self._asked_again = False
        self._wanted: Missing | None = None
        self._cancelled = False

    @property
    def final(self) -> Final | None:
        """The final, perhaps ahead of what is missing."""
        return self._assembler.final

    @property
    def text_so_far(self) -> str:
        """What came in order of the current generation."""
        return self._assembler.text_so_far

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come, though `events` may still hold something."""
        return self.result is not None or self.failure is not None

    @property
    def deadline(self) -> float | None:
        """When to call `expire`; None = never."""
        if self.is_over:
            return None
        times = (self._end_by, self._accept_by, self._settle_by, self._back_by)
        return min((t for t in times if t is not None), default=None)

    def wanted(self) -> Missing | None:
        """What the node is to be asked to send again; None = nothing, or it has been told before."""
        wanted, self._wanted = self._wanted, None
        return wanted

    def feed(self, item: Item, now: float) -> None:
        """Take in what has arrived."""
        if self.is_over:
            return
        match item:
            case bytes():
                self._message(item, now)
            case Status(state=state) if state in GONE:
                self._away = state
                self._back_by = self._back_by or now + self._away_s
            case Status():
                self._back_by = None
                if not self._streamed:  # nothing else comes before the answer
                    self._accept_by = None
            case EdgedError():
                self.failure = item

    def cancel(self, now: float) -> None:
        """The node is being asked to stop: the final is due."""
        if not self._cancelled and (self._end_by is None or now + CANCEL_S < self._end_by):
            self._cancelled, self._timeout_s, self._end_by = True, CANCEL_S, now + CANCEL_S

    def expire(self, now: float) -> None:
        """Draw the consequences if the deadline has passed."""
        if self.is_over:
            return
        missing, final = self._assembler.missing, self.final
        failed = final is not None and final.finish_reason == "error"
        if self._settle_by is not None and now >= self._settle_by and not (self._asked_again or failed):
            self._asked_again, self._wanted, self._settle_by = True, missing, now + self._gap_s
        elif self._settle_by is not None and now >= self._settle_by:
            if final is not None and final.finish_reason == "error":
                self._fail(final)  # says more than that a part of what failed anyway is missing
            else:
                self.failure = self._incomplete("the answer has ended, and a part of it never came")
        elif self._end_by is not None and now >= self._end_by:
            seconds = self._timeout_s or 0.0
            if missing is not None and missing.ranges:
                self.failure = self._incomplete(f"a part of the answer did not come within {seconds:g} s")
            else:
                what = "the node did not confirm the cancellation" if self._cancelled else "no complete answer"
                self.failure = Timeout(what, seconds, text_so_far=self.text_so_far)
        elif self._back_by is not None and now >= self._back_by:
            reason = (
                f"its status card says {self._away!r}, and it was not back within {self._away_s:g} s (away_timeout)"
            )
            self.failure = NodeUnavailable(self._node, reason, state=self._away)
        elif self._accept_by is not None and now >= self._accept_by:
            what = "`accepted`" if self._streamed else "status card and no answer"
            reason = f"no {what} within {self._accept_s:g} s (accept_timeout); is this the node's name?"
            self.failure = NodeUnavailable(self._node, reason)

    def _message(self, payload: bytes, now: float) -> None:
        try:
            events = self._assembler.feed(payload)
        except WrongStreamError:
            return  # somebody else writes to this topic: what is ours is numbered, so nothing is lost in silence
        except AssemblyError as error:
            self.events.extend(error.events)
            if isinstance(error, TextTooLongError):
                self.failure = self._incomplete(str(error))
            else:
                self.failure = CorruptStream(str(error), text_so_far=self.text_so_far)
            self.failure.__cause__ = error
            return
        except WireError:
            return  # no message of a stream at all: the same
        self._accept_by = None
        if self.final is None:  # a higher generation takes an earlier one's final back
            self._settle_by = None
        elif self._settle_by is None:
            self._settle_by = now + self._gap_s
        for event in events:
            if isinstance(event, Completed):
                self._complete(event)
            else:
                self.events.append(event)

    def _complete(self, event: Completed) -> None:
        if event.result.finish_reason == "error":
            self._fail(event.result.final)
        else:
            self.result = event.result
            self.events.append(event)

    def _fail(self, final: Final) -> None:
        error = final.error or Error.of(
            ErrorCode.INTERNAL, "the node ended the request with an error and did not say why"
        )
        kind = RequestRefused if final.gen == 0 else RequestFailed
        self.failure = kind(error, final=final, text_so_far=self.text_so_far)

    def _incomplete(self, message: str) -> IncompleteStream:
        missing = self._assembler.missing
        if missing is not None and missing.ranges:
            ranges = ", ".join(f"{first}-{last}" for first, last in missing.ranges[:5])
            more = f" and {len(missing.ranges) - 5} more ranges" if len(missing.ranges) > 5 else ""
            message = f"{message} (seq {ranges}{more} of generation {missing.gen})"
        return IncompleteStream(message, missing=missing, final=self.final, text_so_far=self.text_so_far)
