"""The topic grammar, both ways (docs/protocol.md, section 1): building topics, and reading them back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from edged.wire.errors import TopicError

#: What the topic root is unless the operator says otherwise.
DEFAULT_ROOT = "edged/v1"
#: A node's name that would collide with the topics of pools.
RESERVED_NODE = "pool"
#: The longest topic that the daemon answers on, in bytes of UTF-8.
MAX_REPLY_TOPIC_BYTES = 512

ID_PATTERN = r"^[A-Za-z0-9_.-]{1,64}$"
NODE_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"

_ID = re.compile(ID_PATTERN)
_NODE = re.compile(NODE_PATTERN)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Kind(StrEnum):
    """The level of a topic after the node's name."""

    REQ = "req"
    ASK = "ask"
    REPLY = "reply"
    RESULT = "result"
    CTL = "ctl"
    SESSION = "session"
    STATUS = "status"
    METRICS = "metrics"
    EVENTS = "events"


#: The levels that consumers publish to and the daemon listens on.
INPUT_KINDS = frozenset({Kind.REQ, Kind.ASK, Kind.CTL, Kind.SESSION})
_KINDS = frozenset(kind.value for kind in Kind)
_WITHOUT_PATH = frozenset({Kind.STATUS, Kind.METRICS, Kind.EVENTS})


def is_id(text: str) -> bool:
    """Whether `text` may name a request or a client: 1 to 64 of `A-Za-z0-9_.-`."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class RequestPath:
    """What names a request: nothing, `ID` or `CLIENT/ID`."""

    id: str | None = None
    client: str | None = None

    def __post_init__(self) -> None:
        """Refuse a path that the grammar has no topic for."""
        if self.client is not None and self.id is None:
            raise TopicError(f"a client ({self.client!r}) needs an id beside it: CLIENT/ID")
        for level in self.levels:
            if not is_id(level):
                raise TopicError(f"{level!r} cannot be a topic level here: use 1 to 64 of A-Z a-z 0-9 _ . -")

    @property
    def levels(self) -> tuple[str, ...]:
        """The topic levels, outermost first."""
        return tuple(level for level in (self.client, self.id) if level is not None)

    @classmethod
    def of(cls, levels: Sequence[str]) -> RequestPath:
        """Read the levels that follow `req`, `reply` or `ctl`.

        Raises:
            TopicError: more than two levels, or one that is not an id.
        """
        if len(levels) > 2:
            raise TopicError(f"{len(levels)} levels after the request level; at most two are allowed: CLIENT/ID")
        return cls(*reversed(levels))

    def __str__(self) -> str:
        return "/".join(self.levels)


@dataclass(frozen=True, slots=True)
class Address:
    """A topic of one node, taken apart."""

    kind: Kind
    path: RequestPath


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics of one node.

    Attributes:
        root: the topic root, e.g. `edged/v1`; no wildcard, no empty level.
        node: the node's name, 1 to 64 of `A-Za-z0-9_-`, not `pool`.
    """

    node: str
    root: str = DEFAULT_ROOT

    def __post_init__(self) -> None:
        """Refuse names that would make other topics than the contract's."""
        if not _NODE.fullmatch(self.node) or self.node == RESERVED_NODE:
            raise TopicError(
                f"node name {self.node!r} is not allowed: use 1 to 64 of A-Z a-z 0-9 _ - (and not {RESERVED_NODE!r})"
            )
        check_publishable(self.root)
        if not all(self.root.split("/")):
            raise TopicError(f"topic root {self.root!r} has an empty level: no / at its ends and no // inside")

    @property
    def base(self) -> str:
        """The prefix of all of the node's topics, without a slash at the end."""
        return f"{self.root}/{self.node}"

    @property
    def status(self) -> str:
        """The retained card, and the last will."""
        return f"{self.base}/{Kind.STATUS}"

    @property
    def metrics(self) -> str:
        """Periodic figures."""
        return f"{self.base}/{Kind.METRICS}"

    @property
    def events(self) -> str:
        """What has no reply topic to go to."""
        return f"{self.base}/{Kind.EVENTS}"

    def filter(self, kind: Kind) -> str:
        """The subscription that takes in every path of a kind, the empty one included."""
        return f"{self.base}/{kind}" if kind in _WITHOUT_PATH else f"{self.base}/{kind}/#"

    def of(self, kind: Kind, path: RequestPath) -> str:
        """The topic of a kind for a request's path."""
        return "/".join((self.base, kind, *path.levels))

    def reply(self, path: RequestPath) -> str:
        """The default reply topic of a request."""
        return self.of(Kind.REPLY, path)

    def split(self, topic: str) -> tuple[Kind, list[str]]:
        """The kind of one of this node's topics and the levels after it, which may break the grammar.

        Raises:
            TopicError: not a topic of this node.
        """
        head, _, rest = topic.removeprefix(self.base + "/").partition("/")
        if not topic.startswith(self.base + "/") or head not in _KINDS:
            raise TopicError(f"{topic!r} is no topic of node {self.node!r} under {self.root!r}")
        has_levels = len(topic) > len(self.base) + 1 + len(head)
        return Kind(head), rest.split("/") if has_levels else []

    def parse(self, topic: str) -> Address:
        """Take a topic of this node apart.

        Raises:
            TopicError: not a topic of this node, or its path breaks the grammar.
        """
        kind, levels = self.split(topic)
        if kind in _WITHOUT_PATH and levels:
            raise TopicError(f"{topic!r}: nothing may follow {kind!s}")
        return Address(kind, RequestPath.of(levels))

    def is_input(self, topic: str) -> bool:
        """Whether the daemon itself listens on this topic, well-formed or not."""
        try:
            kind, _ = self.split(topic)
        except TopicError:
            return False
        return kind in INPUT_KINDS


def check_publishable(topic: str) -> None:
    """Refuse a topic that MQTT does not let one publish to, or that makes brokers drop the connection.

    Raises:
        TopicError: empty, too long, with a wildcard, a leading `$`, a control character or a Unicode non-character
            (MQTT 5.0, sections 1.5.4 and 4.7; Mosquitto closes the connection for some of these).
    """
    if not topic:
        raise TopicError("the topic is empty")
    try:
        size = len(topic.encode())
    except UnicodeEncodeError:
        raise TopicError("the topic has a lone surrogate, which is no Unicode text") from None
    if size > MAX_REPLY_TOPIC_BYTES:
        raise TopicError(f"the topic is {size} bytes long; at most {MAX_REPLY_TOPIC_BYTES} are allowed")
    if "#" in topic or "+" in topic:
        raise TopicError(f"the topic {topic!r} has a wildcard (# or +)")
    if topic.startswith("$"):
        raise TopicError(f"the topic {topic!r} starts with $, which belongs to the broker")
    if _CONTROL.search(topic):
        raise TopicError(f"the topic {topic!r} has a control character")
    if any(_is_noncharacter(ord(c)) for c in topic):
        raise TopicError(f"the topic {topic!r} has a Unicode non-character")


def _is_noncharacter(code: int) -> bool:
    """U+FDD0..U+FDEF and the last two code points of every plane (Unicode 15, section 23.7)."""
    return 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic filter takes in a topic (MQTT 5.0, section 4.7)."""
    if topic.startswith("$") != topic_filter.startswith("$"):
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(levels) or level not in ("+", levels[i]):
            return False
    return len(wanted) == len(levels)


def check_reply_topic(topic: str, *, allowed: Iterable[str], topics: Topics) -> None:
    """Refuse a reply topic that the operator does not allow or that would feed the daemon its own words.

    Args:
        topic: what the consumer asked for.
        allowed: the operator's topic filters (`mqtt.reply_topics`), placeholders already filled in.
        topics: the daemon's own topics.

    Raises:
        TopicError: the topic is not publishable, is an input topic of the daemon, or matches no filter.
    """
    check_publishable(topic)
    if topics.is_input(topic):
        raise TopicError(f"the reply topic {topic!r} is one of the daemon's own input topics")
    if not any(matches(f, topic) for f in allowed):
        raise TopicError(
            f"the reply topic {topic!r} is not allowed here (setting mqtt.reply_topics); allowed: {', '.join(allowed)}"
        )
