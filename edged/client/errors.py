"""What goes wrong for a consumer, as exceptions that carry their data. The root of all is `EdgedError`."""
# ruff: noqa: N818 - `except NotConnected` reads as the sentence it is

from __future__ import annotations

from edged.wire.errors import ErrorCode
from edged.wire.messages import Error, Final, Status
from edged.wire.stream import Missing


class EdgedError(Exception):
    """The root of what the clients raise."""


class NotConnected(EdgedError):
    """There is no connection to the broker, or it was lost; the next request tries again.

    Attributes:
        broker: `host:port`.
        reason: why, in words.
    """

    def __init__(self, broker: str, reason: str) -> None:
        super().__init__(f"not connected to the MQTT broker at {broker}: {reason}")
        self.broker = broker
        self.reason = reason


class PublishRefused(EdgedError):
    """The broker did not take the request.

    Attributes:
        topic: where it was published.
        code: the reason code of the PUBACK (MQTT 5.0, 3.4.2.1).
    """

    def __init__(self, topic: str, code: int, reason: str) -> None:
        super().__init__(
            f"the broker refused the request on {topic}: {reason} (0x{code:02x}); check the user's rights there"
        )
        self.topic = topic
        self.code = code


class NodeUnavailable(EdgedError):
    """The node does not serve: it is gone, or it did not answer in time.

    Attributes:
        node: the node's name.
        state: what its status card says; None where no card was seen.
    """

    def __init__(self, node: str, reason: str, *, state: str | None = None) -> None:
        super().__init__(f"node {node!r} is not available: {reason}")
        self.node = node
        self.state = state


class NodeUndecided(EdgedError):
    """No `node` was named, and there is not exactly one to choose.

    Attributes:
        nodes: the status cards that were seen, those of dead nodes included.
        choices: the names of the nodes that live.
    """

    def __init__(self, root: str, nodes: tuple[Status, ...]) -> None:
        self.nodes = nodes
        self.choices = tuple(card.node for card in nodes if card.state not in ("offline", "lost"))
        seen = ", ".join(f"{card.node} ({card.state})" for card in nodes)
        if self.choices:
            text = f"{len(self.choices)} nodes are there under {root}: {seen}; choose one: node=NAME, or --node NAME"
        elif nodes:
            text = f"no node lives under {root}: {seen}; start one, or name another: node=NAME, or --node NAME"
        else:
            text = (
                f"no node was seen under {root}/+/status: is the daemon connected to this broker, and may this user "
                f"read that topic? Otherwise name the node: node=NAME, or --node NAME"
            )
        super().__init__(text)


class RequestFailed(EdgedError):
    """The node ended the request with an error.

    Attributes:
        error: the error of the final: code, status, message, retryable, retry_after_ms.
        final: the final itself; None where the request was never sent.
        text_so_far: what had been generated: never the whole answer.
    """

    def __init__(self, error: Error, *, final: Final | None = None, text_so_far: str = "") -> None:
        super().__init__(error.message)
        self.error = error
        self.final = final
        self.text_so_far = text_so_far

    @property
    def code(self) -> ErrorCode:
        """The error code of the contract."""
        return self.error.code

    @property
    def status(self) -> int:
        """The HTTP status that says the same."""
        return self.error.status

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without a change."""
        return self.error.retryable

    @property
    def retry_after_ms(self) -> int | None:
        """How long to wait before trying again, milliseconds, where the node says so."""
        return self.error.retry_after_ms


class RequestRefused(RequestFailed):
    """The request was not executed at all (generation 0)."""


class InvalidRequest(RequestRefused):
    """The request breaks the contract; this was seen here, and nothing was sent.

    Attributes:
        field: the field at fault, where there is one.
    """

    def __init__(self, message: str, *, field: str | None = None, code: ErrorCode = ErrorCode.BAD_REQUEST) -> None:
        super().__init__(Error.of(code, message))
        self.field = field


class IncompleteStream(EdgedError):
    """The stream ended, and a part of it never came.

    Attributes:
        missing: what is not there, as generation and ranges of `seq`.
        final: the final, where that came: it says how the request ended, not what it said.
        text_so_far: what came in order: never the whole answer.
    """

    def __init__(self, message: str, *, missing: Missing | None, final: Final | None, text_so_far: str) -> None:
        super().__init__(message)
        self.missing = missing
        self.final = final
        self.text_so_far = text_so_far


class CorruptStream(EdgedError):
    """What came contradicts itself or its checksum; the cause says how.

    Attributes:
        text_so_far: what came in order: not to be trusted.
    """

    def __init__(self, message: str, *, text_so_far: str) -> None:
        super().__init__(message)
        self.text_so_far = text_so_far


class StreamRestarted(EdgedError):
    """The node began the answer again, so the text that was handed out is void.

    Attributes:
        gen: the new generation.
    """

    def __init__(self, gen: int) -> None:
        super().__init__(
            f"the node began the answer again (generation {gen}): the text up to here is void; ask again, or "
            f"iterate over `events()`, which says `Restarted` and goes on"
        )
        self.gen = gen


class SlowConsumer(EdgedError):
    """More of the stream was waiting to be read than the client keeps; the request was cancelled.

    Attributes:
        buffer_bytes: the bound that was reached.
    """

    def __init__(self, buffer_bytes: int) -> None:
        super().__init__(
            f"the stream was not read fast enough: more than {buffer_bytes} bytes were waiting, and the request was "
            f"cancelled; read faster, or raise buffer_bytes"
        )
        self.buffer_bytes = buffer_bytes


class Timeout(EdgedError):
    """The exchange took longer than it may; the request was cancelled.

    Attributes:
        seconds: the bound that was reached.
        text_so_far: what came in order: never the whole answer.
    """

    def __init__(self, what: str, seconds: float, *, text_so_far: str = "") -> None:
        super().__init__(f"{what} within {seconds:g} s; the request was cancelled")
        self.seconds = seconds
        self.text_so_far = text_so_far


class NotFinished(EdgedError):
    """The whole answer was asked for before it was there."""

    def __init__(self) -> None:
        super().__init__("the answer is not complete: iterate to the end first; `text_so_far` has what came")
