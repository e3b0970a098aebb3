"""The order of what is published, around connections that drop: the promise, and why it needs an outbox.

Numbers are published in order at QoS 1. A broker has them in order when each connection brings rising numbers, and when
no number comes for the first time after a higher one: copies may only repeat.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Sequence

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.mqtt.harness import Core
from tests.mqtt.packets import Publish
from tests.mqtt.scripted import PATIENCE_S, Script, ScriptedBroker, Session, polite


def overtakings(published: Sequence[Publish]) -> list[tuple[int, int]]:
    """The numbers that came in the wrong order: (the one that overtook, the one that came after it)."""
    found = []
    for _, group in itertools.groupby(published, key=lambda publish: publish.connection):
        found += [(a, b) for a, b in itertools.pairwise(int(publish.topic) for publish in group) if a >= b]
    firsts = list(dict.fromkeys(int(publish.topic) for publish in published))
    found += [(a, b) for a, b in itertools.pairwise(firsts) if a >= b]
    return found


class DroppedBeforeTheResend:
    """A thread publishes at the moment in which a client has a socket but no connection yet.

    The first connection takes 0, 1 and 2, confirms nothing, and drops. On the second one, 3 is published between
    CONNECT and CONNACK.
    """

    def __init__(self) -> None:
        self.connecting = threading.Event()
        self.published = threading.Event()

    def first(self, session: Session) -> None:
        session.accept()
        for _ in range(3):
            session.read_publish()

    def second(self, session: Session) -> None:
        session.read_connect()
        self.connecting.set()
        assert self.published.wait(PATIENCE_S)
        session.send(session.codec.make_connack(0))
        session.serve()


def test_plain_paho_overtakes_its_own_resend() -> None:
    """Why there is an outbox. When this fails, paho has become better: read its changes, and think again."""
    play = DroppedBeforeTheResend()
    with ScriptedBroker(play.first, play.second) as broker:
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        client.reconnect_delay_set(1, 1)
        client.connect(broker.host, broker.port)
        client.loop_start()
        try:
            for n in range(3):
                client.publish(str(n), qos=1)
            assert play.connecting.wait(PATIENCE_S)
            last = client.publish("3", qos=1)
            play.published.set()
            last.wait_for_publish(PATIENCE_S)
            broker.wait(lambda b: len(b.published) == 7)
        finally:
            client.disconnect()
            client.loop_stop()
            client._reset_sockets()  # paho leaves its wake-up pair to the garbage collector, which warns
        assert [int(publish.topic) for publish in broker.published] == [0, 1, 2, 3, 0, 1, 2]
        assert overtakings(broker.published) == [(3, 0)]


def test_the_outbox_does_not() -> None:
    play = DroppedBeforeTheResend()
    with ScriptedBroker(play.first, play.second) as broker, Core(broker) as core:
        for n in range(3):
            core.publish(str(n), token=n)
        core.pump(lambda: core.reasons)
        assert play.connecting.wait(PATIENCE_S)
        core.publish("3", token=3)
        play.published.set()
        core.pump(lambda: core.confirmed == [0, 1, 2, 3])
        assert [int(publish.topic) for publish in broker.published] == [0, 1, 2, 0, 1, 2, 3]
        assert overtakings(broker.published) == []


@pytest.mark.parametrize("version", [5, "3.1.1"])
def test_drops_lose_nothing_and_reorder_nothing(version: object) -> None:
    """Connections that end anywhere: between packets, with PUBACKs on their way, in the middle of a packet."""
    total, dice = 600, random.Random(7)

    def dropping(after: int, confirm: int) -> Script:
        def script(session: Session) -> None:
            session.accept(receive_maximum=8) if version == 5 else session.accept()
            for n in range(after):
                publish = session.read_publish()
                assert publish is not None
                if n < confirm:
                    session.puback(publish)
            session.send(session.codec.make_puback(9)[: dice.randrange(4)])

        return script

    cuts = [(after, dice.randrange(after - 8, after + 1)) for after in (8, 9, 60, 8, 17, 100, 30, 8)]
    scripts = [dropping(*cut) for cut in cuts]
    with ScriptedBroker(*scripts, polite) as broker, Core(broker, version=version) as core:
        for n in range(total):
            core.publish(str(n), token=n)
            if core.connection.backlog > 40:  # publish while it is connected, and while it is not
                core.pump(lambda: core.connection.backlog < 40)
        core.pump(lambda: len(core.confirmed) == total)
        assert core.confirmed == list(range(total))
        assert core.connection.connections == len(scripts) + 1
        assert overtakings(broker.published) == []
        assert {int(publish.topic) for publish in broker.published} == set(range(total))
