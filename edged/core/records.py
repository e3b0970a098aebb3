"""What the core wants kept, and what it asks of what was kept. `edged.journal` does the keeping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edged.core.events import Now
from edged.wire.topics import RequestPath


@dataclass(frozen=True, slots=True)
class Key:
    """What names a request on this node."""

    client: str | None
    id: str

    @property
    def path(self) -> RequestPath:
        """The PATH of its topics."""
        return RequestPath(self.id, self.client)

    def __str__(self) -> str:
        return str(self.path)


# --- rows: what is written, in order --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request was accepted. It must be durable before it is acknowledged.

    Attributes:
        uid: its number on this node, never used again.
        digest: of the payload.
        came_in: the topic that it was published to.
        payload: as it came.
        response_topic, correlation: its MQTT 5 properties.
        packet_id: the broker's, under which it comes again if its PUBACK gets lost; None at QoS 0.
        seed: what it is sampled with if it names none.
        topic: where the reply goes.
        arrived, deadline: the monotonic half is only good within one boot of the machine.
        gen: the generation of its first execution here.
    """

    uid: int
    key: Key
    digest: bytes
    came_in: str
    payload: bytes
    response_topic: str | None
    correlation: bytes | None
    packet_id: int | None
    seed: int
    topic: str
    arrived: Now
    deadline: Now
    gen: int = 1


@dataclass(frozen=True, slots=True)
class Said:
    """A message of a stream, written before it is published.

    Attributes:
        payload: as it is published, to the byte.
        text: the generated text in it.
        tokens: the tokens behind the text.
        confirmed: the broker has confirmed all messages of this stream with a lower `seq`.
    """

    uid: int
    gen: int
    seq: int
    payload: bytes
    text: str = ""
    tokens: tuple[int, ...] = ()
    confirmed: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """Text of a request that is answered by one message only: never published as it is, but need not be made again."""

    uid: int
    gen: int
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a request fares with engines. The last one written counts.

    Attributes:
        gen: its generation; a higher one than before leaves what was said in the lower ones behind.
        begun_with: it is with an engine, and had so many tokens when it was given to it; None = it waits.
        fruitless: engines that died under it in a row without a new token.
        suspected_at: it was running when an engine died by its own fault, with so many tokens; None = no suspect.
        resumed: how often it went on after a death.
    """

    uid: int
    gen: int
    begun_with: int | None = None
    fruitless: int = 0
    suspected_at: int | None = None
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """The last `Said` was its final. From now on it is remembered for the time that the operator set."""

    uid: int
    wall: float


@dataclass(frozen=True, slots=True)
class Delivered:
    """The broker has confirmed all of it, or will never take it."""

    uid: int


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """It was not accepted after all: nothing of it is kept."""

    uid: int


Row = NewRequest | Said | Generated | Standing | Ended | Delivered | Withdrawn


# --- what is asked --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Past:
    """A request that has ended and is still remembered.

    Attributes:
        gen: its last generation.
        messages: how many it said in that, the final included: their `seq` is 0 to `messages` - 1.
        confirmed: the broker has confirmed all messages with a lower `seq`, as far as is known.
    """

    uid: int
    key: Key
    digest: bytes
    topic: str
    correlation: bytes | None
    gen: int
    messages: int
    confirmed: int


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A request that was accepted and has no final yet.

    Attributes:
        said: the messages of its last generation, in order, without a gap.
        generated: pieces of an answer that was not to be streamed, in order.
    """

    request: NewRequest
    standing: Standing
    said: tuple[Said, ...]
    generated: tuple[Generated, ...]


@dataclass(frozen=True, slots=True)
class Restored:
    """What an earlier daemon left behind.

    Attributes:
        last_uid: the highest number that was ever given to a request.
        same_boot: the machine has not gone down since, so that its monotonic clock goes on.
        intact: all that was written is there, because the machine has not gone down since, or the daemon ended in
            order. If not, requests are, but messages may be lost that consumers have.
        unfinished: in the order of arrival.
        undelivered: requests that have ended, whose messages the broker has not confirmed.
    """

    last_uid: int = 0
    same_boot: bool = True
    intact: bool = True
    unfinished: tuple[Unfinished, ...] = ()
    undelivered: tuple[Past, ...] = ()


class History(Protocol):
    """What the core may ask at any time. It never raises: what cannot be read is not there."""

    def find(self, key: Key) -> Past | None:
        """A request that has ended and is still remembered."""

    def redelivered(self, packet_id: int, digest: bytes) -> Key | None:
        """The last request that came with this packet identifier, if that had the same payload."""

    def messages(self, uid: int, gen: int, first: int, most: int) -> list[tuple[int, bytes]]:
        """Recorded messages from `seq` `first` on, at most so many: (seq, payload), ascending, without a gap."""
