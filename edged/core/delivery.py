"""The way of one stream's messages: numbered, written into the journal, published in order, confirmed by the broker."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from edged.core.events import Properties
from edged.core.records import History, Key, Past, Said
from edged.wire.messages import Reply

#: So many written messages that cannot leave yet are kept in memory; more are read from the journal when they can.
_KEPT = 2
#: After a refusal that may pass, the first pause, the longest, and how often it is tried. Seconds.
_PAUSE_S, _LONGEST_PAUSE_S, _TRIES = 1.0, 60.0, 8


class Sent(NamedTuple):
    """The token of a published message."""

    delivery: Delivery
    seq: int


@dataclass(slots=True, eq=False)
class Delivery:
    """The messages of one generation of a request; their `seq` counts from 0.

    Attributes:
        topic: where they go.
        said: how many there are.
        written: so many of them are in the journal.
        cursor: the next one to publish. Everything below has been; it goes back where something is to be sent again.
        confirmed: the broker has confirmed all below.
        unconfirmed: how many are on their way; copies count.
        accepted: the request survives a power cut, so that the world may hear of it.
        over: the final is said.
        is_copy: sent again for somebody who asked for it; what becomes of it changes nothing.
        retry_at: the broker has no room for it before, monotonic seconds.
    """

    uid: int
    key: Key
    topic: str
    properties: Properties
    gen: int = 1
    said: int = 0
    written: int = 0
    cursor: int = 0
    confirmed: int = 0
    unconfirmed: int = 0
    accepted: bool = False
    over: bool = False
    is_copy: bool = False
    retry_at: float = float("-inf")
    _tries: int = 0
    _fresh: deque[tuple[int, bytes]] = field(default_factory=deque)
    _ahead: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, past: Past, properties: Properties, *, topic: str, first: int, is_copy: bool) -> Delivery:
        """The messages of a request that has ended, from `seq` `first` on."""
        return cls(
            past.uid,
            past.key,
            topic,
            properties,
            past.gen,
            said=past.messages,
            written=past.messages,
            cursor=first,
            confirmed=first if is_copy else past.confirmed,
            accepted=True,
            over=True,
            is_copy=is_copy,
        )

    @property
    def waiting(self) -> int:
        """How many messages have been said that the broker has not confirmed, or is to get again."""
        return self.said - self.cursor + self.unconfirmed

    @property
    def is_done(self) -> bool:
        """Nothing will ever be published of it any more."""
        return self.over and self.cursor == self.said and not self.unconfirmed and self.confirmed == self.said

    def say(self, message: Reply, text: str, tokens: tuple[int, ...]) -> Said:
        """Take the next message in; returns the row for the journal.

        Args:
            message: its `seq` is `said`.
            text: the generated text in it.
            tokens: the tokens behind that.
        """
        payload = message.payload()
        self._fresh.append((message.seq, payload))
        self.said = message.seq + 1
        return Said(self.uid, self.gen, message.seq, payload, text, tokens, self.confirmed)

    def next(self, history: History, most: int) -> list[tuple[int, bytes]]:
        """The messages that are to be published now, at most so many, as (seq, payload); the cursor moves on."""
        taken: list[tuple[int, bytes]] = []
        while len(taken) < most and self.cursor < self.written:
            if self._fresh and self._fresh[0][0] == self.cursor:
                taken.append(self._fresh.popleft())
                self.cursor += 1
                continue
            until = self._fresh[0][0] if self._fresh else self.written
            read = history.messages(self.uid, self.gen, self.cursor, min(most - len(taken), until - self.cursor))
            if not read:  # they are lost: whoever puts the stream together notices, and the rest goes on
                for seq in range(self.cursor, until):
                    self.confirm(seq)
                self.cursor = until
                continue
            taken += read
            self.cursor = read[-1][0] + 1
        while len(self._fresh) > _KEPT and self._fresh[-1][0] < self.written:
            self._fresh.clear()
        return taken

    def rewind(self, seq: int) -> None:
        """Publish again from there on."""
        if seq < self.cursor:
            self.cursor = seq
            self._fresh = deque(one for one in self._fresh if one[0] >= self.written)

    def confirm(self, seq: int) -> None:
        """The broker has a message."""
        self._tries = 0
        if seq >= self.confirmed:
            self._ahead.add(seq)
        while self.confirmed in self._ahead:
            self._ahead.remove(self.confirmed)
            self.confirmed += 1

    def put_off(self, seq: int, now_s: float) -> bool:
        """The broker has no room for a message: it is published again after a pause; False when it was tried enough."""
        self.rewind(seq)
        if self.retry_at > now_s:  # one of several that were on their way
            return True
        self._tries += 1
        self.retry_at = now_s + min(_LONGEST_PAUSE_S, _PAUSE_S * 2.0 ** (self._tries - 1))
        return self._tries < _TRIES
