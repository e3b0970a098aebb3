"""The asyncio client, on a real broker, with a scripted node."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from edged.client import (
    AsyncClient,
    AsyncStream,
    Completed,
    IncompleteStream,
    InvalidRequest,
    NodeUnavailable,
    NodeUndecided,
    NotConnected,
    NotFinished,
    Restarted,
    StreamRestarted,
    Timeout,
)
from edged.wire.messages import Accepted, Chunk
from tests import brokers
from tests.client.puppet import PATIENCE_S, Asked, Options, PuppetNode

Scenario = Callable[[AsyncClient], Coroutine[Any, Any, None]]


def play(options: Options, scenario: Scenario, **more: Any) -> None:
    """Run a scenario in a loop of its own."""

    async def run() -> None:
        async with AsyncClient(**{**options, **more}) as client, asyncio.timeout(PATIENCE_S):
            await scenario(client)

    asyncio.run(run(), debug=True)


async def asked_of(puppet: PuppetNode) -> Asked:
    """The node's next request, without blocking the loop."""
    return await asyncio.to_thread(puppet.asked)


async def cancelled_at(puppet: PuppetNode) -> str:
    return await asyncio.to_thread(puppet.cancelled.get, timeout=PATIENCE_S)


def begin(asked: Asked) -> None:
    """Answer, and go on generating for ever."""
    asked.accept()
    asked.say("one", "two")


async def read(stream: AsyncStream, pieces: list[str]) -> None:
    """Note the pieces, those before an error too."""
    async for piece in stream:
        pieces.append(piece.text)  # noqa: PERF401 - a comprehension would lose them


def test_a_stream_gives_the_text_in_order_and_then_the_result(options: Options, puppet: PuppetNode) -> None:
    puppet.on_request = lambda asked: asked.answer("Hel", "lo ", "wörld ✓")

    async def scenario(client: AsyncClient) -> None:
        stream = client.stream("Hello?", max_tokens=5)
        assert [piece.text async for piece in stream] == ["Hel", "lo ", "wörld ✓"]
        assert stream.text == "Hello wörld ✓"
        assert stream.final is not None
        assert stream.final.finish_reason == "stop"
        assert stream.node == "kitchen"

    play(options, scenario)


def test_pieces_come_while_the_answer_is_being_generated(options: Options, puppet: PuppetNode) -> None:
    async def scenario(client: AsyncClient) -> None:
        async with client.stream("Hello?") as stream:
            asked = await asked_of(puppet)
            asked.accept()
            for text in ("one", "two", "three"):
                asked.say(text)
                assert (await anext(stream)).text == text
            with pytest.raises(NotFinished):
                _ = stream.text
            asked.finish()
            assert [piece async for piece in stream] == []
            assert stream.text == "onetwothree"

    play(options, scenario)


def test_a_request_is_sent_when_reading_begins(options: Options, puppet: PuppetNode) -> None:
    async def scenario(client: AsyncClient) -> None:
        never = client.stream("never read")
        assert never.node is None
        puppet.on_request = lambda asked: asked.answer(asked.request.prompt or "")
        assert (await client.ask("read")).text == "read"
        never.cancel()
        assert [piece async for piece in never] == []

    play(options, scenario)
    assert puppet.asked_nothing()


def test_events_bring_everything_and_completed_last(options: Options, puppet: PuppetNode) -> None:
    puppet.on_request = lambda asked: asked.answer("Hi")

    async def scenario(client: AsyncClient) -> None:
        stream = client.stream("Hello?")
        events = [event async for event in stream.events()]
        assert [type(event) for event in events] == [Accepted, Chunk, Completed]

    play(options, scenario)


def test_several_tasks_share_a_connection_and_keep_apart(private_broker: brokers.LocalBroker) -> None:
    options = {"host": private_broker.host, "port": private_broker.port, "node": "kitchen", "topic_root": "test"}

    async def scenario(client: AsyncClient) -> None:
        async def one(n: int) -> str:
            if n % 2:
                return (await client.ask(f"{n}")).text
            return "".join([piece.text async for piece in client.stream(f"{n}")])

        assert await asyncio.gather(*(one(n) for n in range(40))) == [f"{n}!" for n in range(40)]

    with PuppetNode(private_broker, "test") as puppet:
        puppet.on_request = lambda asked: asked.answer(asked.request.prompt or "", "!")
        play(options, scenario)
    log = (private_broker._directory / "mosquitto.log").read_text()
    assert log.count(" as edged-") == 1
    assert log.count("Received SUBSCRIBE from edged-") == 2  # the status card, and the replies


def test_break_cancels_the_request(options: Options, puppet: PuppetNode) -> None:
    async def scenario(client: AsyncClient) -> None:
        stream = client.stream("Hello?")
        async for _piece in stream:
            break
        assert await cancelled_at(puppet) == stream.id
        assert [piece async for piece in stream] == []

    puppet.on_request = begin
    play(options, scenario)


def test_an_exception_in_the_loop_cancels_the_request(options: Options, puppet: PuppetNode) -> None:
    async def fail_in_a_loop_over(stream: AsyncStream) -> None:
        async for _piece in stream:
            raise ZeroDivisionError

    async def scenario(client: AsyncClient) -> None:
        stream = client.stream("Hello?")
        with pytest.raises(ZeroDivisionError):
            await fail_in_a_loop_over(stream)
        assert await cancelled_at(puppet) == stream.id

    puppet.on_request = begin
    play(options, scenario)


@pytest.mark.parametrize("how", ["stream", "iterator", "ask"])
def test_a_cancelled_task_cancels_its_request(options: Options, puppet: PuppetNode, how: str) -> None:
    async def scenario(client: AsyncClient) -> None:
        async def work() -> None:
            if how == "ask":
                await client.ask("Hello?", id="mine")
            elif how == "stream":
                await read(client.stream("Hello?", id="mine"), [])
            else:
                iterator = aiter(client.stream("Hello?", id="mine"))
                await anext(iterator)  # the traceback keeps the iterator

        task = asyncio.create_task(work())
        (await asked_of(puppet)).accept()
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert await cancelled_at(puppet) == "mine"
        assert caught.value.__traceback__ is not None

    play(options, scenario)


def test_the_end_of_the_block_cancels_the_request(options: Options, puppet: PuppetNode) -> None:
    async def scenario(client: AsyncClient) -> None:
        async with client.stream("Hello?") as stream:
            await asked_of(puppet)
        assert await cancelled_at(puppet) == stream.id
        async with contextlib.aclosing(client.stream("Hello?")) as stream, stream:
            await asked_of(puppet)
        assert await cancelled_at(puppet) == stream.id

    play(options, scenario)


def test_the_end_of_the_client_cancels_what_is_running(options: Options, puppet: PuppetNode) -> None:
    async def scenario(client: AsyncClient) -> None:
        task = asyncio.create_task(client.ask("Hello?", id="mine"))
        await asked_of(puppet)
        await client.aclose()
        with pytest.raises(NotConnected, match="the client was closed"):
            await task
        assert await cancelled_at(puppet) == "mine"
        with pytest.raises(NotConnected, match="the client was closed"):
            await client.ask("again?")

    play(options, scenario)


def test_cancel_ends_the_stream_with_its_final(options: Options, puppet: PuppetNode) -> None:
    async def scenario(client: AsyncClient) -> None:
        async with client.stream("Hello?") as stream:
            asked = await asked_of(puppet)
            asked.accept()
            asked.say("one")
            assert (await anext(stream)).text == "one"
            stream.cancel()
            assert await cancelled_at(puppet) == stream.id
            asked.finish("cancelled")
            assert [piece async for piece in stream] == []
            assert stream.final is not None
            assert stream.final.finish_reason == "cancelled"

    play(options, scenario)


def test_a_wrong_field_fails_before_anything_is_sent(options: Options, puppet: PuppetNode) -> None:
    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(InvalidRequest, match="unknown field `temprature`"):
            client.stream("Hello?", temprature=0.5)  # type: ignore[call-arg]  # what is being tested
        with pytest.raises(InvalidRequest, match="`temperature`"):
            await client.ask("Hello?", temperature=7)

    play(options, scenario)
    assert puppet.asked_nothing()


def test_an_unhealed_gap_is_an_incomplete_stream_and_never_a_partial(options: Options, puppet: PuppetNode) -> None:
    def answer(asked: Asked) -> None:
        asked.accept()
        asked.say("one ")
        asked.chunk("two ")  # never sent
        asked.say("three")
        asked.finish(include_text=False)

    async def scenario(client: AsyncClient) -> None:
        stream = client.stream("Hello?")
        pieces: list[str] = []
        with pytest.raises(IncompleteStream) as caught:
            await read(stream, pieces)
        assert pieces == ["one "]
        assert caught.value.missing is not None
        assert caught.value.missing.ranges == ((2, 2),)

    puppet.on_request = answer
    play(options, scenario, gap_timeout=0.05)


def test_a_restart_voids_what_was_handed_out_and_says_so(options: Options, puppet: PuppetNode) -> None:
    def answer(asked: Asked) -> None:
        asked.accept()
        asked.say("one")
        asked.restart()
        asked.answer("uno")

    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(StreamRestarted):
            await read(client.stream("Hello?"), [])
        stream = client.stream("Hello?")
        assert Restarted(2) in [event async for event in stream.events()]
        assert stream.text == "uno"

    puppet.on_request = answer
    play(options, scenario)


def test_a_node_that_stays_lost_ends_what_waits(options: Options, puppet: PuppetNode) -> None:
    async def scenario(client: AsyncClient) -> None:
        task = asyncio.create_task(client.ask("Hello?"))
        await asked_of(puppet)
        puppet.die()
        with pytest.raises(NodeUnavailable, match="'lost'"):
            await task

    play(options, scenario)


def test_a_node_that_does_not_accept_in_time_is_unavailable(options: Options, puppet: PuppetNode) -> None:
    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(NodeUnavailable, match="no `accepted`"):
            await read(client.stream("Hello?"), [])

    play(options, scenario, accept_timeout=0.05)
    assert puppet.asked().request.prompt == "Hello?"


def test_an_exchange_that_takes_too_long_is_cancelled(options: Options, puppet: PuppetNode) -> None:
    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(Timeout):
            await client.ask("Hello?", id="mine")
        assert await cancelled_at(puppet) == "mine"

    play(options, scenario, timeout=0.1)


def test_no_node_is_an_error(options: Options) -> None:
    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(NodeUndecided):
            await client.connect()

    play(options, scenario, node=None, discovery_timeout=0.1)


def test_a_killed_broker_ends_what_waits_and_the_next_request_connects_again(
    private_broker: brokers.LocalBroker,
) -> None:
    options = {"host": private_broker.host, "port": private_broker.port, "node": None, "topic_root": "test"}

    async def scenario(client: AsyncClient) -> None:
        with PuppetNode(private_broker, "test") as puppet:
            puppet.show("online")
            task = asyncio.create_task(client.ask("Hello?"))
            await asked_of(puppet)
            private_broker.kill()
            with pytest.raises(NotConnected, match="the connection was lost"):
                await task
        with pytest.raises(NotConnected, match="refused"):
            await client.ask("Hello?")
        private_broker.start()
        with PuppetNode(private_broker, "test") as puppet:
            puppet.on_request = lambda asked: asked.answer("Hi")
            assert (await client.ask("Hello?")).text == "Hi"

    play(options, scenario)


def test_a_connection_in_the_making_does_not_block_the_loop(private_broker: brokers.LocalBroker) -> None:
    private_broker.pause()
    options = {"host": private_broker.host, "port": private_broker.port, "node": "kitchen"}

    async def scenario(client: AsyncClient) -> None:
        task = asyncio.create_task(client.connect())
        turns = 0
        while not task.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(NotConnected, match="did not answer"):
            await task
        assert turns > 5

    play(options, scenario, connect_timeout=1)
    private_broker.resume()


def test_a_closed_client_leaves_no_thread(options: Options, puppet: PuppetNode) -> None:
    before = set(threading.enumerate())
    puppet.on_request = lambda asked: asked.answer("Hi")

    async def scenario(client: AsyncClient) -> None:
        assert (await client.ask("Hello?")).text == "Hi"
        await client.aclose()
        assert [t for t in set(threading.enumerate()) - before if t.name == "edged-client"] == []

    play(options, scenario)


def test_a_loop_that_has_ended_stops_nothing_else(options: Options, puppet: PuppetNode) -> None:
    client = AsyncClient(**options)

    async def begin() -> AsyncStream:
        stream = client.stream("Hello?")
        await stream.__aenter__()
        return stream

    async def ask_and_close() -> str:
        puppet.on_request = lambda asked: asked.answer("Hi")
        text = (await client.ask("Hello?")).text
        await client.aclose()
        return text

    left = asyncio.run(begin())
    puppet.asked().accept()  # wakes nobody: its loop is closed
    assert asyncio.run(ask_and_close()) == "Hi"
    left.close()
