"""What goes out, and what is kept back."""

from __future__ import annotations

from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

from edged.core.events import Properties, Publish, Published
from edged.mqtt.happenings import Arrived, Confirmed, Ended
from edged.mqtt.settings import Settings
from edged.wire.errors import TopicError
from tests.mqtt import packets
from tests.mqtt.harness import Core
from tests.mqtt.scripted import PATIENCE_S, ScriptedBroker, Session, polite


def test_what_is_published_before_the_first_connection_goes_out_in_order_after_it() -> None:
    with ScriptedBroker(polite) as broker, Core(broker) as core:
        for n in range(50):
            core.publish(f"t/{n}", token=n, qos=n % 2)
        core.pump(lambda: len(core.confirmed) == 50)
        assert broker.topics == [f"t/{n}" for n in range(50)]
        assert set(core.confirmed) == set(range(50))  # QoS 0 is confirmed by the socket, earlier than by a PUBACK
        assert core.connection.backlog == 0


@pytest.mark.parametrize("version", [5, "3.1.1"])
def test_the_broker_is_told_who_connects_and_what_it_may_send(version: object) -> None:
    with (
        ScriptedBroker(polite) as broker,
        Core(broker, version=version, keepalive_s=17, receive_maximum=7, maximum_packet=5000) as core,
    ):
        core.connect()
        (connect,) = broker.connects
        assert (connect.client_id, connect.clean_start, connect.keepalive) == ("edged-test", True, 17)
        assert connect.version == (5 if version == 5 else 4)
        wanted = b"\x21" + (7).to_bytes(2, "big") + b"\x27" + (5000).to_bytes(4, "big")
        assert sorted(connect.properties) == (sorted(wanted) if version == 5 else [])


def test_the_brokers_receive_maximum_is_kept() -> None:
    most: list[int] = []

    def script(session: Session) -> None:
        session.accept(receive_maximum=3)
        under_way = []
        while len(broker.published) < 30:
            # Wait for more than is allowed: a window that is not kept would show here.
            while (publish := session.read_publish(0.02)) is not None:
                under_way.append(publish)
            most.append(len(under_way))
            session.puback(under_way.pop(0))
        for publish in under_way:
            session.puback(publish)
        session.serve()

    with ScriptedBroker(script) as broker, Core(broker) as core:
        core.connect()
        for n in range(30):
            core.publish(f"t/{n}", token=n)
        core.pump(lambda: len(core.confirmed) == 30)
        assert max(most) == 3
        assert broker.topics == [f"t/{n}" for n in range(30)]


def test_a_puback_out_of_order_makes_room_and_nothing_is_sent_twice() -> None:
    def script(session: Session) -> None:
        session.accept(receive_maximum=4)
        batch = []
        while (publish := session.read_publish()) is not None:
            batch.append(publish)
            if len(batch) == 4:
                for late in reversed(batch):
                    session.puback(late)
                batch = []

    with ScriptedBroker(script) as broker, Core(broker) as core:
        core.connect()
        for n in range(40):
            core.publish(f"t/{n}", token=n)
        core.pump(lambda: len(core.confirmed) == 40)
        assert broker.topics == [f"t/{n}" for n in range(40)]


def test_a_puback_that_refuses_is_reported_and_not_tried_again() -> None:
    def script(session: Session) -> None:
        session.accept()
        while (publish := session.read_publish()) is not None:
            session.puback(publish, 0x87 if publish.topic == "secret" else 0)

    with ScriptedBroker(script) as broker, Core(broker) as core:
        core.connect()
        core.publish("secret", token="refused")
        core.publish("open", token="taken")
        core.pump(lambda: len(core.confirmed) == 2)
        assert core.of(Published) == [Published("refused", 0x87), Published("taken", 0)]
        assert broker.topics == ["secret", "open"]


def test_every_reason_that_mqtt_knows_for_a_puback_reaches_the_core_as_it_is() -> None:
    """MQTT 5.0, 3.4.2.1. What it means, and whether to try again, is for the core to decide."""
    codes = [0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]

    def script(session: Session) -> None:
        session.accept(receive_maximum=2)
        while (publish := session.read_publish()) is not None:
            session.puback(publish, int(publish.topic))

    with ScriptedBroker(script) as broker, Core(broker) as core:
        core.connect()
        for code in codes:
            core.publish(str(code), token=code)
        core.pump(lambda: len(core.confirmed) == len(codes))
        assert core.of(Published) == [Published(code, code) for code in codes]
        assert core.connection.backlog == 0, "a refusal makes room in the window"


@pytest.mark.parametrize("window", [1, 20])
def test_a_message_larger_than_the_broker_takes_is_refused_here_and_does_not_cost_the_connection(window: int) -> None:
    """The broker would end the connection over it, and over its resend, for ever."""

    def script(session: Session) -> None:
        session.accept(maximum_packet_size=200)
        session.serve()

    properties = Properties(expiry_s=60, correlation=b"c" * 10)
    with ScriptedBroker(script) as broker, Core(broker, window=window) as core:
        # Fixed header 3, topic 2 + 1, identifier 2 (none at QoS 0), properties 1 + 19 + 2 + 5 + 13, then the payload.
        taken = {(10, 1): True, (153, 1): False, (152, 1): True, (100_000, 1): False, (155, 0): False, (154, 0): True}
        for size, qos in taken:
            core.publish("t", b"x" * size, qos=qos, token=(size, qos), properties=properties)
        core.pump(lambda: len(core.confirmed) == len(taken))
        codes = {event.token: event.reason_code for event in core.of(Published)}
        assert codes == {token: 0 if fits else 0x95 for token, fits in taken.items()}
        broker.wait(lambda b: len(b.published) == 3)
        assert [len(publish.payload) for publish in broker.published] == [10, 152, 154]
        assert core.connection.connections == 1
        assert core.connection.backlog == 0


def test_a_broker_that_can_do_less_gets_less() -> None:
    def script(session: Session) -> None:
        session.accept(maximum_qos=0, retain_available=0)
        session.serve()

    with ScriptedBroker(script) as broker, Core(broker) as core:
        core.publish("t", token="sent", retain=True)
        core.pump(lambda: core.confirmed == ["sent"])
        broker.wait(lambda b: len(b.published) == 1)
        (publish,) = broker.published
        assert (publish.qos, publish.retain) == (0, False)


def test_the_gate_opens_only_when_the_subscriptions_are_granted() -> None:
    """A reply must not be on its way while the node cannot be spoken to."""
    published_early: list[object] = []

    def script(session: Session) -> None:
        session.accept()
        subscribe = session.read_subscribe()
        assert (subscribe.filters, subscribe.options) == (("a/#", "b"), (0b1001, 0b1001))  # QoS 1, retain as published
        published_early.append(session.read_publish(0.1))
        session.send(session.codec.make_suback(subscribe.mid, [1, 1]))
        session.serve()

    with ScriptedBroker(script) as broker, Core(broker, subscriptions=["a/#", "b"]) as core:
        core.publish("t", token=1)
        core.pump(lambda: core.confirmed == [1])
        assert published_early == [None]


def test_a_topic_that_would_cost_every_connection_is_refused_at_once() -> None:
    """Mosquitto drops the connection over these, and over the resend after every reconnect, for ever."""
    bad = ["a\x00b", "a\uffff", "a/#", ""]
    with ScriptedBroker(polite) as broker, Core(broker) as core:
        core.connect()
        for topic in bad:
            core.publish(topic, token=topic)
        core.publish("good", token="good")
        core.pump(lambda: len(core.confirmed) == 5)
        assert core.of(Published) == [*(Published(topic, 0x90) for topic in bad), Published("good", 0)]
        assert broker.topics == ["good"]
        assert core.connection.connections == 1


def test_a_will_that_no_broker_takes_is_refused_at_once() -> None:
    with ScriptedBroker(polite) as broker, pytest.raises(TopicError):
        Core(broker, will=Publish("a/#", b""))


def test_qos_0_does_not_pile_up_while_the_broker_is_away() -> None:
    """An outage of a month must not end in a full memory; what QoS 1 promises is kept."""
    with ScriptedBroker(polite) as broker:
        pass
    with Core(broker, outbox=10) as core:
        for n in range(100):
            core.publish("metrics", b"%d" % n, qos=0, token=n)
        core.publish("reply", qos=1)
        assert core.connection.backlog == 11
        core.pump(lambda: len(core.confirmed) == 90)
        assert core.of(Published) == [Published(n, 0x97) for n in range(10, 100)]


def test_the_properties_of_a_stream_are_put_into_bytes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """paho does it for every message, and takes as long for that as for all the rest."""
    packed: list[int] = []
    pack = PahoProperties.pack

    def counted(properties: PahoProperties) -> bytes:
        packed.append(properties.packetType)
        return pack(properties)  # type: ignore[no-any-return, no-untyped-call]  # paho's properties have no types

    monkeypatch.setattr(PahoProperties, "pack", counted)
    with ScriptedBroker(polite) as broker, Core(broker) as core:
        for n in range(30):
            core.publish("t", token=n, properties=Properties(expiry_s=600, correlation=b"k"))
        core.pump(lambda: len(core.confirmed) == 30)
    assert packed.count(PacketTypes.PUBLISH) == 1
    assert {publish.properties for publish in broker.published} == {
        b"\x01\x01\x02" + (600).to_bytes(4, "big") + b"\x03\x00\x10application/json\x09\x00\x01k"
    }


def test_what_was_confirmed_together_is_told_together() -> None:
    """A message to the core wakes its thread, which decides once for all of it."""

    def script(session: Session) -> None:
        session.accept()
        publishes = [session.read_publish() for _ in range(8)]
        session.send(b"".join(session.codec.make_puback(publish.mid, 0) for publish in publishes if publish))
        session.serve()

    with ScriptedBroker(script) as broker, Core(broker) as core:
        core.connect()
        for n in range(8):
            core.publish("t", token=n)
        confirmed = core.inbox.get(timeout=PATIENCE_S)
        assert isinstance(confirmed, Confirmed)
        assert [event.token for event in core.connection.handle(confirmed) if isinstance(event, Published)] == [
            *range(8)
        ]
        assert core.inbox.empty()


def test_what_was_confirmed_is_told_before_what_came_behind_it() -> None:
    def script(session: Session) -> None:
        session.accept()
        publish, _ = session.read_publish(), session.read_publish()  # paho reads as many packets as it waits for
        assert publish is not None
        message = packets.packet(packets.PUBLISH, 0, b"\x00\x03in/\x00x")
        session.send(session.codec.make_puback(publish.mid, 0) + message)
        session.read_publish()

    with ScriptedBroker(script) as broker, Core(broker) as core:
        core.connect()
        core.publish("t", token=1)
        core.publish("t", token=2)
        told = [core.inbox.get(timeout=PATIENCE_S) for _ in range(2)]
    assert [type(happening) for happening in told] == [Confirmed, Arrived]


def test_what_was_confirmed_is_told_although_paho_fails_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedBroker(polite) as broker, Core(broker) as core:
        core.connect()
        read = Client.loop_read

        def failing(client: Client) -> None:
            read(client)
            raise ValueError("what it cannot read")

        monkeypatch.setattr(Client, "loop_read", failing)
        core.publish("t", token=1)
        told = [core.inbox.get(timeout=PATIENCE_S) for _ in range(2)]
        monkeypatch.undo()
    assert [type(happening) for happening in told] == [Confirmed, Ended]


@pytest.mark.parametrize(
    ("field", "value"),
    [("port", 0), ("keepalive_s", 0), ("receive_maximum", 0), ("receive_maximum", 65536), ("maximum_packet", 10)],
)
def test_a_setting_that_mqtt_has_no_room_for_is_refused(field: str, value: int) -> None:
    fields: dict[str, Any] = {"host": "h", "port": 1883, "client_id": "c", "keepalive_s": 30, field: value}
    with pytest.raises(ValueError, match=f"{field} is {value}; it has to be between"):
        Settings(**fields)
