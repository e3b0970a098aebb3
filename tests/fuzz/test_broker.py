"""Brokers differ in what they pass on. Topics that Mosquitto would hang up on are read or refused like all others."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edged.engine.protocol import Generate
from tests.fuzz.publishes import payloads
from tests.mqtt.packets import packet
from tests.mqtt.scripted import ScriptedBroker, Session
from tests.nodes import ScriptedNode

BATCHES = 80
BASE = "edged/v1/flooded"

_levels = st.one_of(
    st.binary(max_size=8),
    st.text(max_size=8).map(lambda text: text.encode(errors="surrogatepass")),
    st.sampled_from([b"a", b"b"]),
    st.sampled_from([b"a", b"b", b"\0", b"#", b"+", b"\xff\xfe", b"\x1b[2J", b"\xef\xbf\xbf", b"x" * 60_000]),
)
_topics = st.one_of(
    st.builds(
        lambda kind, levels: b"/".join((BASE.encode(), kind, *levels)),
        st.sampled_from([b"req", b"ask", b"ctl", b"ctl", b"session", b"status"]),
        st.lists(_levels, max_size=3),
    ),
    st.sampled_from([b"", b"/", b"$SYS/x", BASE.encode(), BASE.encode() + b"/", b"\xff", b"#"]),
).filter(lambda topic: len(topic) < 65_536)
#: Topic, payload, packet identifier (QoS 0 where there is none), DUP flag.
_arrivals = st.tuples(_topics, payloads, st.none() | st.integers(1, 65_535), st.booleans())


class Passer:
    """A broker's side that passes batches on, one after the other, each when the one before has been answered."""

    def __init__(self) -> None:
        self._batches: queue.SimpleQueue[tuple[bytes, str] | None] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[str] = queue.SimpleQueue()

    def script(self, session: Session) -> None:
        connect = session.read_connect()
        session.send(session.codec.make_connack(0))
        if not connect.client_id.endswith("-ctl"):
            while b'"online"' not in self._take(session):
                pass
            while (batch := self._batches.get()) is not None:
                raw, id_ = batch
                session.send(raw)
                while f'"id":"{id_}"'.encode() not in self._take(session):
                    pass
                self._answered.put(id_)
        session.serve()

    def pass_on(self, raw: bytes, id_: str) -> None:
        """Pass packets on, of which the last is a request with this id; returns when it is answered."""
        self._batches.put((raw, id_))
        assert self._answered.get(timeout=30) == id_

    def close(self) -> None:
        self._batches.put(None)

    @staticmethod
    def _take(session: Session) -> bytes:
        publish = session.read_publish()
        assert publish is not None, "the node has left"
        session.puback(publish)
        return publish.payload


def raw(topic: bytes, payload: bytes, mid: int | None, dup: bool) -> bytes:
    identifier = b"" if mid is None else mid.to_bytes(2, "big")
    flags = 0 if mid is None else dup << 3 | 1 << 1
    return packet(3, flags, len(topic).to_bytes(2, "big") + topic + identifier + b"\0" + payload)


def echo(_order: Generate) -> list[str]:
    return ["fine"]


@pytest.fixture
def passer(tmp_path: Path) -> Iterator[Passer]:
    passer = Passer()
    with ScriptedBroker(passer.script) as broker:
        node = ScriptedNode(tmp_path, broker.host, broker.port, "flooded", answer=echo)
        with closing(node), closing(passer):
            node._thread.start()
            yield passer
            assert len(broker.connects) == 2, "it has lost a connection"


def test_a_topic_that_no_topic_should_be_ends_nothing(passer: Passer, caplog: pytest.LogCaptureFixture) -> None:
    passed = 0

    @settings(
        deadline=None,
        database=None,
        max_examples=BATCHES,
        phases=[Phase.generate],  # what has been answered once is remembered: shrinking would meet another node
        suppress_health_check=list(HealthCheck),
    )
    @seed(4)
    @given(st.lists(_arrivals, min_size=10, max_size=30))
    def fire(arrivals: list[tuple[bytes, bytes, int | None, bool]]) -> None:
        nonlocal passed
        passed += 1
        ask = raw(f"{BASE}/ask/n{passed}".encode(), b"hello", 1, False)
        passer.pass_on(b"".join(raw(*one) for one in arrivals) + ask, f"n{passed}")

    with caplog.at_level(logging.ERROR), capture_logs() as logs:
        fire()

    assert passed >= BATCHES
    assert not [entry for entry in logs if entry["log_level"] in ("error", "critical")]
    assert not caplog.records
