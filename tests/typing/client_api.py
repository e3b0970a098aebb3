"""The clients as users write them. Nothing here runs: mypy reads it, and an ignore that is not needed is an error."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import assert_type

from edged import AsyncClient, Client
from edged.client import (
    AsyncStream,
    Completed,
    EdgedError,
    ErrorCode,
    Final,
    IncompleteStream,
    Message,
    Missing,
    NodeUndecided,
    RequestFailed,
    Restarted,
    Result,
    Stream,
    StreamEvent,
    Text,
)


def constructing() -> None:
    Client()
    Client(host="broker.local", port=1883, node="pi-kitchen", client="garage", username="ann", password="secret")
    Client(tls=True, version="3.1.1", topic_root="home/llm")
    AsyncClient(tls=ssl.create_default_context(), version=5, accept_timeout=None, timeout=60, buffer_bytes=10_000)
    Client(hots="broker.local")  # type: ignore[call-arg]  # misspelt
    AsyncClient(port="1883")  # type: ignore[arg-type]  # no number
    AsyncClient(version=4)  # type: ignore[arg-type]  # not spoken


def streaming() -> None:
    with Client(node="pi-kitchen") as client:
        assert_type(client, Client)
        assert_type(client.connect(), str)
        with client.stream("Why is the sky blue?", max_tokens=100, temperature=0.2, stop=["\n"]) as stream:
            assert_type(stream, Stream)
            for piece in stream:
                assert_type(piece, Text)
                assert_type(piece.text, str)
            assert_type(stream.text, str)
            assert_type(stream.final, Final | None)
            assert_type(stream.result, Result)
            stream.cancel()
        pieces: Iterator[Text] = iter(client.stream("Hello"))
        next(pieces)
        next(client.stream("Hello"))
        client.stream("Hello", max_tokns=5)  # type: ignore[call-arg]  # misspelt
        client.stream("Hello", max_tokens="5")  # type: ignore[arg-type]  # no number
        client.stream(prompt="Hello")  # type: ignore[call-arg]  # the prompt has no name
        client.stream(5)  # type: ignore[arg-type]  # no prompt


def conversing(client: Client) -> None:
    messages = [Message(role="system", content="Be brief."), Message(role="user", content="Hello")]
    assert_type(client.ask(messages), Result)
    assert_type(client.ask([{"role": "user", "content": "Hello"}], seed=1).text, str)
    dicts = [{"role": "user", "content": "Hello"}]
    client.ask(dicts, metadata={"a": "b"}, priority="high")
    client.ask(dicts, priority="urgent")  # type: ignore[arg-type]  # there is no such priority


def following(client: Client) -> None:
    for event in client.stream("Hello").events():
        assert_type(event, StreamEvent)
        match event:
            case Restarted(gen):
                assert_type(gen, int)
            case Completed(result):
                assert_type(result, Result)


def failing(client: Client) -> None:
    try:
        client.ask("Hello")
    except RequestFailed as error:
        assert_type(error.code, ErrorCode)
        assert_type(error.retryable, bool)
        assert_type(error.retry_after_ms, int | None)
    except IncompleteStream as error:
        assert_type(error.missing, Missing | None)
    except NodeUndecided as error:
        assert_type(error.choices, tuple[str, ...])
    except EdgedError:
        pass


async def in_asyncio() -> None:
    async with AsyncClient(node="pi-kitchen") as client:
        assert_type(client, AsyncClient)
        async with client.stream("Why is the sky blue?", max_tokens=100) as stream:
            assert_type(stream, AsyncStream)
            async for piece in stream:
                assert_type(piece, Text)
        assert_type([piece.text async for piece in client.stream("Hello")], list[str])
        assert_type(await anext(client.stream("Hello")), Text)
        async for event in client.stream("Hello").events():
            assert_type(event, StreamEvent)
        assert_type(await client.ask("Hello", system="Be brief."), Result)
        client.ask("Hello", max_tokns=5)  # type: ignore[call-arg, unused-coroutine]  # misspelt, and not awaited
