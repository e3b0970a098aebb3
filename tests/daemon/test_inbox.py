"""What waits for the main thread is bounded, comes in order, and confirmations come together."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from edged.core.events import MessageArrived
from edged.inbox import Control, Flow, Inbox, Stop
from edged.mqtt.happenings import Arrived, Confirmed, Ended, Happening
from tests.nodes import wait_until

MESSAGE = Arrived(MessageArrived(topic="edged/v1/ask/a/b/c", payload=b"x" * 5000))
#: A connection's thread has time to post what it may in so long, seconds.
SETTLED_S = 0.2


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    monkeypatch.setattr("edged.inbox._MOST_BYTES", 20_000)
    one = Inbox()
    yield one
    one.close()


@pytest.mark.parametrize("of_control", [False, True])
def test_a_flood_waits_in_the_thread_of_its_connection(inbox: Inbox, *, of_control: bool) -> None:
    flow = inbox.controls if of_control else inbox.requests
    thread = _flood(inbox, of_control=of_control)
    most = 0
    for _ in range(50):
        wait_until(lambda: flow.waiting > 20_000 or not thread.is_alive(), "more than the bound is there")
        thread.join(SETTLED_S / 50)
        most = max(most, flow.waiting)
        _, item = inbox.get(1.0)
        assert item == (Control(MESSAGE) if of_control else MESSAGE)
        flow.handle(MESSAGE)
    thread.join(10.0)

    assert not thread.is_alive()
    assert (flow.waiting, inbox.get(0.0)) == (0, ([], None))
    assert 20_000 < most <= 20_000 + 6_024  # one over the bound is let in


def test_while_one_connection_floods_the_other_and_the_engines_do_not_wait(inbox: Inbox) -> None:
    flooding = _flood(inbox, of_control=False)
    wait_until(lambda: inbox.requests.waiting > 20_000, "more than the bound is there")
    inbox.on_control(MESSAGE)
    inbox.on_request(Ended(1, "gone"))
    inbox.put(Stop("now"))

    found = [inbox.get(1.0)[1] for _ in range(inbox.requests.waiting // 6_024 + 3)]
    assert [item for item in found if item != MESSAGE] == [Control(MESSAGE), Ended(1, "gone"), Stop("now")]
    assert flooding.is_alive()


def test_nobody_waits_once_it_is_closed(inbox: Inbox) -> None:
    thread = _flood(inbox, of_control=False)
    wait_until(lambda: inbox.requests.waiting > 20_000, "more than the bound is there")
    inbox.close()
    thread.join(10.0)

    assert not thread.is_alive()


def test_confirmations_come_together_with_what_follows_them(inbox: Inbox) -> None:
    first, second, third = (Confirmed(1, ((number, 0),)) for number in (1, 2, 3))
    for item in (first, second, Stop("a"), third):
        inbox.on_request(item) if isinstance(item, Confirmed) else inbox.put(item)

    assert [inbox.get(0.0) for _ in range(3)] == [([first, second], Stop("a")), ([third], None), ([], None)]


def test_what_is_no_message_weighs_nothing() -> None:
    flow = Flow()
    happening: Happening = Confirmed(1, ((1, 0),))
    flow.post(happening)
    assert flow.waiting == 0
    flow.post(MESSAGE)
    assert flow.waiting == 6_024
    flow.handle(MESSAGE)
    assert flow.waiting == 0


def _flood(inbox: Inbox, *, of_control: bool) -> threading.Thread:
    """Post 50 messages in a thread of its own."""
    post = inbox.on_control if of_control else inbox.on_request

    def run() -> None:
        for _ in range(50):
            post(MESSAGE)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
