"""What the core is told (events) and what it wants done (effects).

Nothing here does anything: the daemon feeds events to `Core.handle` and performs the effects it returns, in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edged.wire.errors import ErrorCode
from edged.wire.messages import ModelCard


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
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: float | None = None
    ack: object | None = None


@dataclass(frozen=True, slots=True)
class BrokerConnected:
    """Connected and subscribed: publishes flow again."""


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
    """The child process ended or was given up; what it was generating is gone."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of one request: whole characters, `n` tokens."""

    uid: int
    text: str
    n: int


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
        timings: the engine's share of the contract's metrics, by their names.
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
    """What one turn of the engine's loop brought: all sequences of one batch together."""

    model: str
    deltas: tuple[Delta, ...] = ()
    prefill: tuple[PrefillProgress, ...] = ()
    finished: tuple[Finished, ...] = ()


# --- events: from the daemon itself ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing but time has passed: `Core.wake_at` was reached."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no more requests; what still runs after `grace_s` seconds is cancelled."""

    grace_s: float


Event = (
    MessageArrived
    | BrokerConnected
    | BrokerDisconnected
    | Published
    | EngineLoading
    | EngineReady
    | EngineLost
    | EngineStep
    | Tick
    | Drain
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
    """

    model: str
    uid: int
    messages: tuple[tuple[str, str], ...] | None
    prompt: str | None
    sampling: Sampling
    progress: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ask a model's engine to stop a request; it answers with `Finished`."""

    model: str
    uid: int


@dataclass(frozen=True, slots=True)
class Log:
    """A log line for operators; never with prompt text."""

    level: str
    event: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stop:
    """Drained: nothing is left to do but to disconnect and exit."""


Effect = Publish | Acknowledge | Generate | Cancel | Log | Stop
