"""Takes what streams say through the journal to their topics: written first, published then, confirmed at last.

A message is published after the journal has it (`Written`), a new request is acknowledged and told so after it would
survive a power cut (`Synced`). Where the journal cannot be written, everything that is to be kept waits here and is
tried again; new requests are not accepted meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from edged.core.delivery import Delivery, Sent
from edged.core.events import Effect, Now, Publish, Published, Record, Synced, Written
from edged.core.records import Delivered, Ended, History, Key, NewRequest, Past, Row, Said, Standing, Withdrawn
from edged.wire.messages import Reply

#: How long to wait before a journal that could not be written is tried again, seconds.
RETRY_S = 1.0
#: Reasons for which a broker refuses a message now and may take it later (MQTT 5.0, 3.4.2.1): unspecified,
#: implementation specific, quota exceeded.
_PASSING = frozenset({0x80, 0x83, 0x97})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows from a `Written`.

    Attributes:
        refused: requests that could not be recorded, and so are not accepted.
        ended: requests whose end is recorded, by uid: the journal answers for them from now on.
    """

    refused: list[Delivery] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)


class Courier:
    """All messages of all streams that are not at their end yet.

    Args:
        history: what the journal has.
        most: messages of one stream that the broker has not confirmed.
    """

    def __init__(self, history: History, *, most: int) -> None:
        self._history = history
        self._most = most
        self._deliveries: dict[int, Delivery] = {}
        self._rows: list[Row] = []
        #: Requests that are not accepted after all, which the journal does not know yet.
        self._withdrawn: set[int] = set()
        self._under_way: dict[int, tuple[Row, ...]] = {}
        #: The requests of which nothing may be published yet: the row that has to be safe before, and its record.
        self._unsynced: dict[int, tuple[int, NewRequest | Standing]] = {}
        self._number = 1
        self._effects: list[Effect] = []
        self._retry_at: float | None = None
        #: Why the journal cannot be written; None where it can.
        self.failure: str | None = None
        #: Whether the broker is there.
        self.connected = False
        #: Messages that the broker has not confirmed.
        self.unconfirmed = 0

    # --- what is to be kept ---

    def add(self, delivery: Delivery) -> None:
        """Look after a stream's messages from now on."""
        self._deliveries[delivery.uid] = delivery
        self._pump(delivery)

    def accept(self, delivery: Delivery, request: NewRequest) -> None:
        """A new request: nothing of it is published before it is safe."""
        self._deliveries[delivery.uid] = delivery
        self._rows.append(request)
        self._unsynced[delivery.uid] = self._number, request

    def accept_again(self, delivery: Delivery, standing: Standing) -> None:
        """A request in a new generation: nothing of it is published before its number is safe."""
        self._deliveries[delivery.uid] = delivery
        self._rows.append(standing)
        self._unsynced[delivery.uid] = self._number, standing

    def say(self, delivery: Delivery, message: Reply, text: str = "", tokens: tuple[int, ...] = ()) -> None:
        """A message of a stream."""
        self._rows.append(delivery.say(message, text, tokens))

    def keep(self, row: Row) -> None:
        """A row that is no message."""
        self._rows.append(row)

    def end(self, delivery: Delivery, now: Now) -> None:
        """The final has been said."""
        delivery.over = True
        self._rows.append(Ended(delivery.uid, now.wall))

    def abandon(self, delivery: Delivery) -> None:
        """The broker will never take what this stream says: nothing more of it is published."""
        delivery.over = True
        self._forget(delivery)

    @property
    def awaited(self) -> int | None:
        """The number of the record that the requests accepted so far are in; None where all of them are safe."""
        return max((number for number, _ in self._unsynced.values()), default=None)

    @property
    def undelivered(self) -> int:
        """Streams that have ended and are not with the broker yet."""
        return sum(delivery.over and not delivery.is_copy for delivery in self._deliveries.values())

    @property
    def copies(self) -> int:
        """Streams that are being sent again."""
        return sum(delivery.is_copy for delivery in self._deliveries.values())

    def past(self, key: Key) -> Past | None:
        """A request that has ended and is still remembered."""
        found = self._history.find(key)
        return None if found is None or found.uid in self._withdrawn else found

    def find(self, uid: int) -> Delivery | None:
        """What is on its way of a request."""
        return self._deliveries.get(uid)

    def again(self, delivery: Delivery, seq: int) -> None:
        """Publish a stream's messages again from there on."""
        delivery.rewind(seq)
        self._pump(delivery)

    # --- the journal ---

    def take(self) -> list[Effect]:
        """What is to be published since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def record(self, now: Now) -> list[Effect]:
        """What is to be written. It comes last of all effects, because what it answers may take others of them back."""
        rows: tuple[Row, ...]
        if self._retry_at is not None and now.mono >= self._retry_at:
            rows, self._retry_at = (), None  # nothing: to find out whether the journal can be written again
        elif self._rows and self.failure is None:
            rows, self._rows = tuple(self._rows), []
        else:
            return []
        number, self._number = self._number, self._number + 1
        self._under_way[number] = rows
        sync = any(isinstance(row, NewRequest | Ended | Withdrawn) or row.uid in self._unsynced for row in rows)
        return [Record(number, rows, sync=sync)]

    @property
    def wake_at(self) -> float | None:
        """When there is something to try again, monotonic seconds."""
        due = [d.retry_at for d in self._deliveries.values() if d.retry_at > float("-inf")] if self.connected else []
        if self._retry_at is not None:
            due.append(self._retry_at)
        return min(due, default=None)

    def written(self, event: Written, now: Now) -> Outcome:
        """The journal has answered."""
        rows = self._under_way.pop(event.number)
        if event.error is not None:
            return Outcome(refused=self._not_written(rows, event.error, now))
        self.failure = None
        self._withdrawn -= {row.uid for row in rows if isinstance(row, Withdrawn)}
        touched: dict[int, Delivery] = {}
        for row in rows:
            if isinstance(row, Said) and (delivery := self._deliveries.get(row.uid)) is not None:
                delivery.written = row.seq + 1
                touched[row.uid] = delivery
        for delivery in touched.values():
            self._pump(delivery)
        return Outcome(ended=[row.uid for row in rows if isinstance(row, Ended)])

    def _not_written(self, rows: Iterable[Row], error: str, now: Now) -> list[Delivery]:
        self.failure = error
        self._retry_at = now.mono + RETRY_S
        new = {row.uid for row in rows if isinstance(row, NewRequest)}
        self._rows = [row for row in (*rows, *self._rows) if row.uid not in new]
        return [self._drop(uid) for uid in sorted(new)]

    def synced(self, event: Synced, now: Now) -> list[Delivery]:
        """What was written survives a power cut, or that is uncertain; returns who is not accepted for that."""
        mine = [(uid, row) for uid, (number, row) in self._unsynced.items() if number <= event.number]
        if event.error is None:
            for uid, _ in mine:
                del self._unsynced[uid]
                if (delivery := self._deliveries.get(uid)) is not None:
                    delivery.accepted = True
                    self._pump(delivery)
            return []
        self.failure = event.error
        self._retry_at = now.mono + RETRY_S
        new = [uid for uid, row in mine if isinstance(row, NewRequest)]
        self._rows = [row for row in self._rows if row.uid not in new]
        self._rows += [Withdrawn(uid) for uid in new]
        self._withdrawn |= set(new)
        refused = [self._drop(uid) for uid in new]
        for uid, row in mine:
            if isinstance(row, Standing):
                self._rows.append(row)
                self._unsynced[uid] = self._number, row
        return refused

    def _drop(self, uid: int) -> Delivery:
        del self._unsynced[uid]
        return self._deliveries.pop(uid)

    # --- the broker ---

    def connection(self, *, up: bool) -> None:
        """The broker is there, or it is not."""
        self.connected = up
        for delivery in list(self._deliveries.values()) if up else ():
            self._pump(delivery)

    def on_time(self, now: Now) -> None:
        """Try again what is due."""
        for delivery in list(self._deliveries.values()) if self.connected else ():
            if float("-inf") < delivery.retry_at <= now.mono:
                delivery.retry_at = float("-inf")
                self._pump(delivery)

    def confirmed(self, event: Published, now: Now) -> Delivery | None:
        """The broker has answered; returns the stream whose messages it will never take."""
        if not isinstance(event.token, Sent):
            return None
        delivery, seq = event.token
        self.unconfirmed -= 1
        delivery.unconfirmed -= 1
        if self._deliveries.get(delivery.uid) is not delivery:
            return None
        if event.reason_code >= 0x80:
            if event.reason_code not in _PASSING or not delivery.put_off(seq, now.mono):
                return delivery
            return None
        delivery.confirm(seq)
        if delivery.is_done:
            self._forget(delivery)
        else:
            self._pump(delivery)
        return None

    def _forget(self, delivery: Delivery) -> None:
        del self._deliveries[delivery.uid]
        if not delivery.is_copy:
            self._rows.append(Delivered(delivery.uid))

    def _pump(self, delivery: Delivery) -> None:
        """Publish what can be published now."""
        if not self.connected or not delivery.accepted or delivery.retry_at > float("-inf"):
            return
        for seq, payload in delivery.next(self._history, self._most - delivery.unconfirmed):
            delivery.unconfirmed += 1
            self.unconfirmed += 1
            token = Sent(delivery, seq)
            self._effects.append(Publish(delivery.topic, payload, properties=delivery.properties, token=token))
        if delivery.is_done:  # what was left of it could not be read
            self._forget(delivery)
