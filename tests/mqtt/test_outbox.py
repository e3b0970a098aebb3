"""The outbox alone: a state machine is compared with a model that is too simple to be wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edged.core.events import Publish
from edged.mqtt.outbox import Outbox, Sending

CAPACITY = 12


def message(topic: str = "t", **fields: object) -> Publish:
    return Publish(topic, b"", **fields)  # type: ignore[arg-type]  # the tests know what they pass


@dataclass
class Entry:
    """One message in the model: numbered in the order of `put`."""

    number: int
    publication: Publish


class OutboxMachine(RuleBasedStateMachine):
    """Messages are numbered; the model is a list of those not confirmed, and which of them are on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(capacity=CAPACITY)
        self.window = 0
        self.number = 0
        self.unconfirmed: list[Entry] = []
        self.under_way: dict[int, Entry] = {}
        self.sent_on_this_connection: list[int] = []
        self.first_sent: list[int] = []

    def check(self, sendings: list[Sending]) -> None:
        """What it says to send is exactly what the model has waiting, from the front, as far as the window reaches."""
        on_their_way = [entry.number for entry in self.under_way.values()]
        waiting = [entry for entry in self.unconfirmed if entry.number not in on_their_way]
        expected = waiting[: max(0, self.window - len(self.under_way))]
        assert [sending.publication for sending in sendings] == [entry.publication for entry in expected]
        for sending, entry in zip(sendings, expected, strict=True):
            assert sending.handle not in self.under_way
            self.under_way[sending.handle] = entry
            self.sent_on_this_connection.append(entry.number)
            if entry.number not in self.first_sent:
                self.first_sent.append(entry.number)

    @rule(qos=st.sampled_from([0, 1]), retained=st.sampled_from(["", "", "", "a", "b"]), token=st.booleans())
    def put(self, qos: int, retained: str, token: bool) -> None:
        entry = Entry(self.number, message(retained or f"t/{self.number}", qos=qos, retain=bool(retained)))
        if token:
            entry.publication = message(entry.publication.topic, qos=qos, retain=bool(retained), token=self.number)
        self.number += 1
        full = len(self.unconfirmed) >= CAPACITY
        assert self.outbox.takes(entry.publication) == (qos == 1 or not full)
        if qos == 0 and full:
            return
        sendings = self.outbox.put(entry.publication)
        if retained:
            self.unconfirmed = [old for old in self.unconfirmed if not self.superseded(old, retained)]
        self.unconfirmed.append(entry)
        self.check(sendings)

    def superseded(self, old: Entry, topic: str) -> bool:
        publication = old.publication
        never_sent = old.number not in self.first_sent
        return publication.retain and publication.topic == topic and publication.token is None and never_sent

    @precondition(lambda self: not self.window)
    @rule(window=st.integers(1, 5))
    def opened(self, window: int) -> None:
        self.window = window
        self.sent_on_this_connection = []
        self.check(self.outbox.opened(window))

    @precondition(lambda self: self.window)
    @rule()
    def closed(self) -> None:
        self.outbox.closed()
        self.window = 0
        self.under_way.clear()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def confirmed(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(sorted(self.under_way)))
        self.unconfirmed.remove(self.under_way.pop(handle))
        self.check(self.outbox.confirmed(handle))

    @invariant()
    def nothing_is_lost_and_the_window_is_kept(self) -> None:
        assert len(self.outbox) == len(self.unconfirmed)
        assert len(self.under_way) <= self.window

    @invariant()
    def each_connection_is_in_order_and_so_are_the_first_copies(self) -> None:
        assert self.sent_on_this_connection == sorted(set(self.sent_on_this_connection))
        assert self.first_sent == sorted(self.first_sent)

    def teardown(self) -> None:
        """In the end everything gets through."""
        if not self.window:
            self.opened(3)
        while self.under_way:
            handle = next(iter(self.under_way))
            self.unconfirmed.remove(self.under_way.pop(handle))
            self.check(self.outbox.confirmed(handle))
        assert not self.unconfirmed
        assert len(self.outbox) == 0


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=150, stateful_step_count=40)


def test_what_was_confirmed_is_not_sent_again() -> None:
    outbox = Outbox(capacity=10)
    for n in range(4):
        outbox.put(message(f"t/{n}"))
    first = outbox.opened(3)
    assert [s.publication.topic for s in first] == ["t/0", "t/1", "t/2"]
    outbox.confirmed(first[1].handle)
    outbox.closed()
    assert [s.publication.topic for s in outbox.opened(10)] == ["t/0", "t/2", "t/3"]


def test_of_a_retained_topic_that_waits_only_the_newest_is_sent_and_in_its_place() -> None:
    outbox = Outbox(capacity=10)
    outbox.put(message("status", retain=True))
    outbox.put(message("reply"))
    newest = message("status", retain=True)
    outbox.put(newest)
    assert [s.publication.topic for s in outbox.opened(10)] == ["reply", "status"]


def test_a_retained_message_that_somebody_waits_for_is_sent_even_if_a_newer_one_waits() -> None:
    outbox = Outbox(capacity=10)
    outbox.put(message("status", retain=True, token="offline"))
    outbox.put(message("status", retain=True))
    assert [s.publication.token for s in outbox.opened(10)] == ["offline", None]


def test_a_confirmation_of_something_that_is_not_on_its_way_is_an_error() -> None:
    outbox = Outbox(capacity=10)
    outbox.put(message())
    with pytest.raises(KeyError):
        outbox.confirmed(0)


def test_a_full_outbox_takes_qos_1_and_no_qos_0() -> None:
    outbox = Outbox(capacity=2)
    outbox.put(message())
    assert outbox.takes(message(qos=0))
    outbox.put(message())
    assert not outbox.takes(message(qos=0))
    assert outbox.takes(message(qos=1))
