"""Brokers that do what mosquitto cannot be made to do: scripted, packet by packet."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from edged.client import Client, NotConnected, Settings
from edged.client.commands import Leave, Route, Send, Watch
from edged.client.connection import Connection
from edged.client.inbox import Inbox
from tests.brokers import free_port
from tests.client.puppet import PATIENCE_S, until
from tests.mqtt import packets
from tests.mqtt.scripted import ScriptedBroker, Session

FAILURE = 0x87


def welcome(session: Session, *, cards: int = 1, replies: int = 1, **properties: int) -> None:
    """Accept the connection, and answer the subscriptions to the status card and to the replies."""
    session.accept(session_present=False, **properties)
    for code in (cards, replies):
        session.send(session.codec.make_suback(session.read_subscribe().mid, [code]))


def reach(broker: ScriptedBroker, **more: Any) -> dict[str, Any]:
    return {"host": broker.host, "port": broker.port, "node": "kitchen", **more}


def test_no_more_is_under_way_than_the_broker_takes() -> None:
    def script(session: Session) -> None:
        welcome(session, receive_maximum=2)
        first, second = session.read_publish(), session.read_publish()
        assert first is not None
        assert second is not None
        assert session.read_publish(timeout_s=0.2) is None
        session.puback(first)
        third = session.read_publish()
        assert third is not None
        assert session.read_publish(timeout_s=0.2) is None
        session.puback(second)
        session.puback(third)
        session.serve()

    with ScriptedBroker(script) as broker, Client(**reach(broker)) as client:
        streams = [client.stream(f"{n}") for n in range(6)]
        broker.wait(lambda it: len(it.published) == 6)
        ids = [topic.rsplit("/", 1)[-1] for topic in broker.topics]
        assert ids == [stream.id for stream in streams]


def test_refused_replies_end_in_a_sentence() -> None:
    def script(session: Session) -> None:
        welcome(session, replies=FAILURE)
        session.serve()

    words = r"refused the subscription to edged/v1/kitchen/reply/.*Not authorized"
    with ScriptedBroker(script) as broker, Client(**reach(broker)) as client, pytest.raises(NotConnected, match=words):
        client.connect()


def test_without_status_cards_one_can_still_ask() -> None:
    def script(session: Session) -> None:
        welcome(session, cards=FAILURE)
        session.serve()

    with ScriptedBroker(script) as broker, Client(**reach(broker)) as client:
        assert client.connect() == "kitchen"


def test_a_broker_that_never_grants_the_subscriptions_is_given_up() -> None:
    def script(session: Session) -> None:
        session.accept()
        session.read_subscribe()
        session.read_subscribe()
        session.read()

    with ScriptedBroker(script) as broker:
        client = Client(**reach(broker, connect_timeout=1))
        with client, pytest.raises(NotConnected, match=r"did not answer within 1 s"):
            client.connect()


@pytest.mark.parametrize(
    ("last_words", "reason"),
    [
        (packets.packet(packets.DISCONNECT, 0, b"\x8b"), "the broker ended the connection: Server shutting down"),
        (b"", "the connection was lost"),
        (b"\xff" * 100, r"."),
        (packets.packet(packets.PUBLISH, 0x02, b"\x00"), r"."),
    ],
    ids=["goodbye", "nothing", "garbage", "cut-short"],
)
def test_what_waits_ends_when_the_broker_does(last_words: bytes, reason: str) -> None:
    def script(session: Session) -> None:
        welcome(session)
        publish = session.read_publish()
        assert publish is not None
        session.puback(publish)
        session.send(last_words)

    with ScriptedBroker(script) as broker, Client(**reach(broker)) as client:
        with pytest.raises(NotConnected, match=reason) as caught:
            client.ask("Hello?")
        assert caught.value.reason


def test_strange_topics_and_payloads_stop_nothing() -> None:
    def script(session: Session) -> None:
        welcome(session)
        for topic in (b"\xff\xfe", b"edged/v1/kitchen/reply", b"edged/v1//reply//", b"elsewhere", b"edged/v1/x/status"):
            session.send(session.codec.make_publish(topic, b"\xff{"))
        session.serve()

    with ScriptedBroker(script) as broker, Client(**reach(broker)) as client:
        stream = client.stream("Hello?")
        broker.wait(lambda it: len(it.published) == 1)
        stream.close()
        broker.wait(lambda it: len(it.published) == 2)
        assert broker.topics[1] == f"edged/v1/kitchen/ctl/{client.name}/{stream.id}"


def test_a_keep_alive_of_the_brokers_own_is_kept() -> None:
    pinged = threading.Event()

    def script(session: Session) -> None:
        welcome(session, server_keep_alive=1)
        assert session.read()[0] == packets.PINGREQ
        pinged.set()

    with ScriptedBroker(script) as broker, Client(**reach(broker, keepalive=600)) as client:
        client.connect()
        assert pinged.wait(PATIENCE_S)


def test_a_command_to_a_connection_that_is_over_is_answered_at_once() -> None:
    connection = Connection(Settings(host="127.0.0.1", port=free_port(), node="kitchen"), "me")
    connection.open()
    connection.join(PATIENCE_S)
    woken = threading.Event()
    inbox = Inbox(1000, woken.set)
    route = Route("k1", "kitchen", "edged/v1/kitchen/req/me/k1", "edged/v1/kitchen/ctl/me/k1", inbox)
    connection.submit(Send(route, b"{}"))
    assert isinstance(inbox.take(), NotConnected)
    woken.clear()
    connection.submit(Leave(route, ended=False))
    assert not woken.is_set()
    connection.submit(Watch(woken.set))
    assert woken.is_set()


def test_a_watcher_that_comes_late_is_woken_at_once() -> None:
    def script(session: Session) -> None:
        welcome(session)
        session.serve()

    with ScriptedBroker(script) as broker, Client(**reach(broker)) as client:
        client.connect()
        woken = threading.Event()
        client._link.connection().submit(Watch(woken.set))
        assert woken.wait(PATIENCE_S)


def test_a_request_to_a_client_that_is_closing_is_refused() -> None:
    silent = threading.Event()

    def script(session: Session) -> None:
        welcome(session)
        session.read_publish()  # is not confirmed
        silent.wait(PATIENCE_S)

    with ScriptedBroker(script) as broker:
        client = Client(**reach(broker))
        stream = client.stream("Hello?")
        connection = client._link.connection()
        closer = threading.Thread(target=client.close)
        closer.start()
        until(lambda: connection._closing, "the closing")
        inbox = Inbox(1000, lambda: None)
        connection.submit(Send(Route("k1", "kitchen", "edged/v1/kitchen/req/me/k1", "x", inbox), b"{}"))
        with pytest.raises(NotConnected, match="the client was closed"):
            list(stream)
        closer.join(PATIENCE_S)
        silent.set()
        assert isinstance(inbox.take(), NotConnected)
