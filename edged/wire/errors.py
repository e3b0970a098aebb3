"""The error codes of the contract (docs/protocol.md, section 4) and the exceptions that carry them."""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """What went wrong, as `error.code` says it; `status` and `retryable` follow from it."""

    BAD_REQUEST = "bad_request"
    UNKNOWN_REQUEST = "unknown_request"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_PRESET = "unknown_preset"
    TIMEOUT = "timeout"
    ID_CONFLICT = "id_conflict"
    TOO_LARGE = "too_large"
    CONTEXT_OVERFLOW = "context_overflow"
    OVERLOADED = "overloaded"
    INTERNAL = "internal"
    DRAINING = "draining"
    LOADING = "loading"
    UNAVAILABLE = "unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"

    @property
    def status(self) -> int:
        """The HTTP status that says the same, for people and gateways that think in those."""
        return _STATUS[self][0]

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without a change."""
        return _STATUS[self][1]


_STATUS: dict[ErrorCode, tuple[int, bool]] = {
    ErrorCode.BAD_REQUEST: (400, False),
    ErrorCode.UNKNOWN_REQUEST: (404, False),
    ErrorCode.UNKNOWN_MODEL: (404, False),
    ErrorCode.UNKNOWN_PRESET: (404, False),
    ErrorCode.TIMEOUT: (408, True),
    ErrorCode.ID_CONFLICT: (409, False),
    ErrorCode.TOO_LARGE: (413, False),
    ErrorCode.CONTEXT_OVERFLOW: (413, False),
    ErrorCode.OVERLOADED: (429, True),
    ErrorCode.INTERNAL: (500, True),
    ErrorCode.DRAINING: (503, True),
    ErrorCode.LOADING: (503, True),
    ErrorCode.UNAVAILABLE: (503, True),
    ErrorCode.OUT_OF_MEMORY: (503, True),
    ErrorCode.CRASHED: (507, False),
}


class WireError(ValueError):
    """The root of what this package raises: a message or topic breaks the contract."""


class RequestError(WireError):
    """A request that is refused before it is queued.

    Attributes:
        code: the error code of the contract.
        message: a sentence for the consumer: what was wrong, with which value, and what to do.
        field: the request field at fault, where there is one.
        id: the request's own `id`, where it could still be read.
        reply_to: the request's own `reply_to`, where it could still be read (not yet checked).
        decoded: False when the payload could not even be read as text or JSON.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        field: str | None = None,
        id: str | None = None,  # noqa: A002 - the contract's name
        reply_to: str | None = None,
        decoded: bool = True,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.id = id
        self.reply_to = reply_to
        self.decoded = decoded


class TopicError(WireError):
    """A topic outside the grammar, or a reply topic that is not allowed; the message says why."""
