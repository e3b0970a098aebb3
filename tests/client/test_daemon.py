"""The clients against the daemon itself: both sides of the contract are ours, and they fit."""

from __future__ import annotations

import asyncio

import pytest

from edged.client import AsyncClient, Client, ErrorCode, NodeUnavailable, RequestRefused
from tests.brokers import Broker
from tests.client.puppet import until
from tests.fixtures import StartNode, StartScripted
from tests.nodes import ENDLESS, NodeProcess


def test_streaming_and_asking(broker: Broker, start_scripted: StartScripted) -> None:
    node = start_scripted(broker, answer=lambda _: ["Hel", "lo ", "✓"])
    with Client(host=broker.host, port=broker.port, node=node.name) as client:
        stream = client.stream("Hello?", metadata={"a": "b"})
        assert "".join(piece.text for piece in stream) == "Hello ✓"
        assert stream.result.final.metadata == {"a": "b"}
        assert stream.result.final.usage is not None
        assert client.ask([{"role": "user", "content": "Hello?"}]).text == "Hello ✓"


def test_mqtt_3_1_1(broker: Broker, start_scripted: StartScripted) -> None:
    node = start_scripted(broker, answer=lambda _: ["Hel", "lo"])
    with Client(host=broker.host, port=broker.port, node=node.name, version="3.1.1") as client:
        assert "".join(piece.text for piece in client.stream("Hello?")) == "Hello"
        assert client.ask("Hello?").text == "Hello"


def test_break_stops_the_generation(broker: Broker, start_scripted: StartScripted) -> None:
    node = start_scripted(broker)
    with Client(host=broker.host, port=broker.port, node=node.name) as client:
        stream = client.stream("Hello?")
        until(lambda: bool(node.engine.running), "the engine's start")
        (uid,) = node.engine.running
        node.engine.say(uid, "one")
        for _piece in stream:
            break
        until(lambda: node.engine.cancelled == [uid], "the cancellation")


def test_a_refusal_of_the_daemons(broker: Broker, start_scripted: StartScripted) -> None:
    node = start_scripted(broker)
    with Client(host=broker.host, port=broker.port, node=node.name) as client:
        with pytest.raises(RequestRefused) as caught:
            client.ask("Hello?", model="nonesuch")
        assert caught.value.code is ErrorCode.UNKNOWN_MODEL
        with pytest.raises(RequestRefused) as caught:
            list(client.stream("Hello?", model="nonesuch"))
        assert caught.value.code is ErrorCode.UNKNOWN_MODEL


def test_a_daemon_that_has_ended_is_not_asked(broker: Broker, start_scripted: StartScripted) -> None:
    node = start_scripted(broker)
    node.stop()
    client = Client(host=broker.host, port=broker.port, node=node.name)
    with client, pytest.raises(NodeUnavailable, match="'offline'"):
        client.ask("Hello?")


@pytest.mark.model
def test_a_real_model_for_several_at_once(node: NodeProcess) -> None:
    async def scenario() -> list[str]:
        async with AsyncClient(host=node.host, port=node.port, node=node.name) as client:

            async def one(n: int) -> str:
                stream = client.stream(f"Write a story about the number {n}.", max_tokens=20, seed=n)
                text = "".join([piece.text async for piece in stream])
                assert text == stream.text
                return text

            return await asyncio.gather(*(one(n) for n in range(4)))

    texts = asyncio.run(scenario())
    assert len(set(texts)) == 4
    assert all(texts)


@pytest.mark.model
def test_a_stream_goes_on_through_the_death_of_the_daemon(broker: Broker, start_node: StartNode) -> None:
    node = start_node(broker)
    with Client(host=node.host, port=node.port, node=node.name) as client:
        stream = client.stream(str(ENDLESS["prompt"]), raw=True, temperature=0, max_tokens=150)
        pieces = [next(stream).text]
        node.kill()
        node.start()
        pieces += [piece.text for piece in stream]
    assert "".join(pieces) == stream.text
    assert stream.result.final.metrics is not None
    assert stream.result.final.metrics.resumed == 1
