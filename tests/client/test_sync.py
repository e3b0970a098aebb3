"""The threaded client, on a real broker, with a scripted node."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from edged.client import (
    Client,
    Completed,
    Message,
    NotConnected,
    NotFinished,
    Stream,
    Text,
)
from edged.wire.messages import Accepted, Chunk
from edged.wire.topics import Kind
from tests.client.puppet import PATIENCE_S, Asked, Options, PuppetNode, until


def fail_in_a_loop_over(stream: Stream) -> None:
    for _piece in stream:
        raise ZeroDivisionError


def test_a_stream_gives_the_text_in_order_and_then_the_result(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?", max_tokens=5, temperature=0)
    asked = puppet.asked()
    assert asked.request.prompt == "Hello?"
    assert asked.request.max_tokens == 5
    assert asked.kind is Kind.REQ
    assert (asked.path.client, asked.path.id) == (client.name, stream.id)
    asked.answer("Hel", "lo ", "wörld ✓")
    assert [piece.text for piece in stream] == ["Hel", "lo ", "wörld ✓"]
    assert stream.text == "Hello wörld ✓"
    assert stream.final is not None
    assert stream.final.finish_reason == "stop"
    assert stream.result.final.metrics is not None
    assert not stream.result.healed
    assert stream.node == "kitchen"


def test_pieces_come_while_the_answer_is_being_generated(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    for text in ("one", "two", "three"):
        asked.say(text)
        assert next(stream).text == text
    assert stream.text_so_far == "onetwothree"
    with pytest.raises(NotFinished):
        _ = stream.text
    assert stream.final is None
    asked.finish()
    assert list(stream) == []
    assert stream.text == "onetwothree"


def test_messages_are_sent_as_they_are_given(client: Client, puppet: PuppetNode) -> None:
    turns: list[Message | dict[str, str]] = [
        {"role": "system", "content": "Be brief."},
        Message(role="user", content="Hello?"),
    ]
    with client.stream(turns, id="my-id", stop=["x"], metadata={"a": "b"}) as stream:
        request = puppet.asked().request
    assert stream.id == "my-id"
    assert [(turn.role, turn.content) for turn in request.conversation] == [("system", "Be brief."), ("user", "Hello?")]
    assert request.stops == ("x",)
    assert request.metadata == {"a": "b"}


def test_events_bring_everything_and_completed_last(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?", metadata={"a": "b"})
    puppet.asked().answer("Hi")
    accepted, chunk, completed = stream.events()
    assert isinstance(accepted, Accepted)
    assert accepted.metadata == {"a": "b"}
    assert isinstance(chunk, Chunk)
    assert isinstance(completed, Completed)
    assert completed.result is stream.result


def test_ask_is_answered_by_one_message_on_the_ask_topic(client: Client, puppet: PuppetNode) -> None:
    kinds = []

    def answer(asked: Asked) -> None:
        kinds.append(asked.kind)
        asked.answer("All of it")

    puppet.on_request = answer
    result = client.ask("Hello?", max_tokens=5)
    assert result.text == "All of it"
    assert result.final.finish_reason == "stop"
    assert kinds == [Kind.ASK]


# --- leaving early --------------------------------------------------------------------------------------------------


def test_break_cancels_the_request(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    asked.say("one", "two")
    for _piece in stream:
        break
    assert puppet.cancelled.get(timeout=PATIENCE_S) == stream.id
    assert list(stream) == []
    with pytest.raises(NotFinished):
        _ = stream.text


def test_a_loop_that_was_left_is_not_gone_on_with_though_the_answer_had_come(
    client: Client, puppet: PuppetNode
) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    one, two = asked.chunk("one"), asked.chunk("two")
    asked.send(two, asked.final(include_text=False), one)  # the first message to be of use brings everything
    for _piece in stream:
        break
    assert list(stream) == []
    assert stream.text == "onetwo"


def test_an_exception_in_the_loop_cancels_the_request(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    asked.say("one")
    with pytest.raises(ZeroDivisionError):
        fail_in_a_loop_over(stream)
    assert puppet.cancelled.get(timeout=PATIENCE_S) == stream.id


def test_the_end_of_a_with_block_cancels_the_request(client: Client, puppet: PuppetNode) -> None:
    with client.stream("Hello?") as stream:
        puppet.asked().accept()
    assert puppet.cancelled.get(timeout=PATIENCE_S) == stream.id
    assert list(stream) == []
    with pytest.raises(NotFinished):
        _ = stream.result


def test_a_dropped_stream_cancels_the_request(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    name = stream.id
    puppet.asked().accept()
    del stream
    gc.collect()
    assert puppet.cancelled.get(timeout=PATIENCE_S) == name


def test_the_end_of_the_client_cancels_what_is_running(options: Options, puppet: PuppetNode) -> None:
    with Client(**options) as client:
        streams = [client.stream(f"{n}") for n in range(30)]  # more than one window of unconfirmed publishes
        for _ in streams:
            puppet.asked().accept()
    assert {puppet.cancelled.get(timeout=PATIENCE_S) for _ in streams} == {stream.id for stream in streams}
    with pytest.raises(NotConnected, match="the client was closed"):
        for _ in streams[0].events():
            pass
    with pytest.raises(NotConnected, match="the client was closed"):
        client.stream("again?")


def test_a_finished_request_is_not_cancelled(client: Client, puppet: PuppetNode) -> None:
    with client.stream("Hello?") as stream:
        puppet.asked().answer("Hi")
        assert "".join(piece.text for piece in stream) == "Hi"
    with client.stream("And?") as second:
        puppet.asked().accept()
    assert puppet.cancelled.get(timeout=PATIENCE_S) == second.id


def test_cancel_ends_the_stream_with_its_final(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    asked.say("one")
    assert next(stream).text == "one"
    stream.cancel()
    stream.cancel()
    assert puppet.cancelled.get(timeout=PATIENCE_S) == stream.id
    asked.finish("cancelled")
    assert list(stream) == []
    assert stream.final is not None
    assert stream.final.finish_reason == "cancelled"
    assert stream.text == "one"


def test_close_in_another_thread_ends_the_loop(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    pieces: list[Text] = []
    reader = threading.Thread(target=lambda: pieces.extend(stream))
    reader.start()
    asked = puppet.asked()
    asked.accept()
    asked.say("one")
    until(lambda: len(pieces) == 1, "the first piece")
    stream.close()
    reader.join(PATIENCE_S)
    assert not reader.is_alive()
    assert puppet.cancelled.get(timeout=PATIENCE_S) == stream.id


# --- many at once ---------------------------------------------------------------------------------------------------


def test_several_streams_share_a_connection_and_keep_apart(client: Client, puppet: PuppetNode) -> None:
    streams = {stream.id: stream for stream in (client.stream(f"{n}") for n in range(8))}
    asked = [puppet.asked() for _ in streams]
    for request in asked:
        request.accept()
    for word in ("a", "b", "c"):
        for request in asked:
            request.say(f"{request.id}-{word} ")
    for request in reversed(asked):
        request.finish(include_text=False)
    for name, stream in streams.items():
        assert "".join(piece.text for piece in stream) == f"{name}-a {name}-b {name}-c "


def test_several_threads_may_ask_at_once(client: Client, puppet: PuppetNode) -> None:
    puppet.on_request = lambda asked: asked.answer(asked.request.prompt or "", "!")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: client.ask(f"{n}").text, range(40)))
        texts = list(pool.map(lambda n: "".join(piece.text for piece in client.stream(f"{n}")), range(40)))
    assert results == texts == [f"{n}!" for n in range(40)]
