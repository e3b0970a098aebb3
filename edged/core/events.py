"""What the core is told (events) and what it wants done (effects).

Nothing here does anything: the daemon feeds events to `Core.handle` and performs the effects it returns, in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edged.wire.errors import ErrorCode
from edged.wire.messages import ModelCard

if TYPE_CHECKING:
    from edged.core.records import Row


@dataclass(frozen=True, slots=True)
class Now:
    """The time that comes with an event.

    Attributes:
        mono: seconds of a clock that never jumps (CLOCK_MONOTONIC, the same in the engine's process); for durations.
        wall: Unix seconds; for what people read.
    """

    mono: float
    wall: float


# --- events: from the broker's side ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """A PUBLISH on one of the daemon's input topics.

    Attributes:
        ack: what `Acknowledge` has to name; None at QoS 0.
        expiry_s: what was left of the MQTT 5 Message Expiry Interval, seconds.
        packet_id: the broker's; None at QoS 0.
        duplicate: the DUP flag: the broker has sent it before, and had no PUBACK for it.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: float | None = None
    ack: object | None = None
    packet_id: int | None = None
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class BrokerConnected:
    """Connected and subscribed: publishes flow again.

    Attributes:
        session_present: the broker still has the session: subscriptions, and what came meanwhile.
        maximum_packet: bytes of the largest packet that it takes; None where it says nothing.
    """

    session_present: bool = False
    maximum_packet: int | None = None


@dataclass(frozen=True, slots=True)
class BrokerDisconnected:
    """The connection is gone; the outbox keeps what is not confirmed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Published:
    """The broker has confirmed a `Publish` that had a token (PUBACK; at QoS 0, handed to the socket).

    Attributes:
        reason_code: of the PUBACK; 0x80 and above say that the broker refused the message (MQTT 5.0, 3.4.2.1).
    """

    token: object
    reason_code: int = 0


@dataclass(frozen=True, slots=True)
class Confirmations:
    """Several `Published`, in order: the broker confirms the chunks of all streams at nearly the same time."""

    of: tuple[Published, ...]


# --- events: from the journal's side --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    """The rows of a `Record` are written, and survive the end of the process; or none of them is.

    Attributes:
        error: why they are not; None where they are.
    """

    number: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Synced:
    """The rows of all `Record`s up to this one survive a power cut, too.

    Attributes:
        error: why that is not certain; None where it is.
    """

    number: int
    error: str | None = None


# --- events: from the engine's side ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineLoading:
    """A child process is loading a model; `fraction` is of the file, 0 to 1."""

    model: str
    fraction: float


@dataclass(frozen=True, slots=True)
class EngineReady:
    """A model is loaded and takes requests."""

    model: str
    card: ModelCard


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The child process ended or was given up; another will be started.

    Attributes:
        error: why it could not load the model; None where it had loaded it, or died without a word.
        outside: it was killed from outside, by no fault of what it was generating.
        retry_in_s: seconds until the next one is started.
    """

    model: str
    reason: str
    error: ErrorCode | None = None
    outside: bool = False
    retry_in_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of one request: whole characters, and the tokens behind it."""

    uid: int
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """How much of one request's prompt has been computed, in tokens."""

    uid: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The engine is done with one request.

    Attributes:
        reason: `stop`, `length`, `cancelled` or `error`.
        timings: the engine's share of the contract's metrics, by their names; and `waited_ms`, from its arrival there
            to its first step.
    """

    uid: int
    reason: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    error: ErrorCode | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class EngineStep:
    """What some turns of the engine's loop brought: all sequences of its batches together.

    Attributes:
        held_s: how long the oldest of the text has waited for the rest, seconds.
    """

    model: str
    deltas: tuple[Delta, ...] = ()
    prefill: tuple[PrefillProgress, ...] = ()
    finished: tuple[Finished, ...] = ()
    held_s: float = 0.0


# --- events: from the daemon itself ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing but time has passed: `Core.wake_at` was reached."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no more requests; what still runs after `grace_s` seconds is cancelled."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Leave:
    """Go at once: what runs is the next daemon's."""


Event = (
    MessageArrived
    | BrokerConnected
    | BrokerDisconnected
    | Published
    | Confirmations
    | EngineLoading
    | EngineReady
    | EngineLost
    | EngineStep
    | Written
    | Synced
    | Tick
    | Drain
    | Leave
)


# --- effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Properties:
    """The MQTT 5 properties of a published message; one object serves all messages of a stream.

    Attributes:
        expiry_s: Message Expiry Interval, seconds.
        correlation: Correlation Data of the request, echoed.
    """

    expiry_s: int | None = None
    correlation: bytes | None = None


@dataclass(frozen=True, slots=True)
class Publish:
    """Hand a message to the outbox. The payload is JSON in UTF-8.

    Attributes:
        token: named in `Published` once the broker has confirmed the message; None where nobody waits for that.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    properties: Properties = Properties()
    token: object | None = None


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Send the PUBACK for a message that came in."""

    ack: object


@dataclass(frozen=True, slots=True)
class Sampling:
    """The parameters of one generation, all decided. Names and meaning are those of the contract."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: tuple[str, ...]
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float


@dataclass(frozen=True, slots=True)
class Generate:
    """Give a request to a model's engine.

    Attributes:
        messages: (role, content) pairs for the chat template; or None, then `prompt` is completed as it stands.
        generated: tokens of the answer that were given out already, before the engine died.
        crc32: of the text that they were, zlib's, of its UTF-8.
        owner: whose request it is.
        shared: so many of the first messages are the operator's own words.
        exact: the answer must be the same to the last bit as one from an empty cache.
    """

    model: str
    uid: int
    messages: tuple[tuple[str, str], ...] | None
    prompt: str | None
    sampling: Sampling
    progress: bool = False
    generated: tuple[int, ...] = ()
    crc32: int = 0
    owner: str | None = None
    shared: int = 0
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ask a model's engine to stop a request; it answers with `Finished`."""

    model: str
    uid: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Ask a model's engine to generate nothing more for a request for now, and to keep its place."""

    model: str
    uid: int


@dataclass(frozen=True, slots=True)
class Release:
    """Ask a model's engine to go on with a request that was held."""

    model: str
    uid: int


@dataclass(frozen=True, slots=True)
class Record:
    """Write rows into the journal, all or none; `Written` answers, before the next effect is performed.

    Attributes:
        sync: they are to survive a power cut; `Synced` says when they do.
    """

    number: int
    rows: tuple[Row, ...]
    sync: bool = False


@dataclass(frozen=True, slots=True)
class Log:
    """A log line for operators; never with prompt text."""

    level: str
    event: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stop:
    """Drained: nothing is left to do but to disconnect and exit."""


Effect = Publish | Acknowledge | Generate | Cancel | Hold | Release | Record | Log | Stop
