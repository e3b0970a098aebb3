"""The examples do what they say."""

from __future__ import annotations

import asyncio
import runpy
from pathlib import Path
from typing import Any

import pytest

from edged.client import AsyncClient, Client
from edged.wire.errors import ErrorCode
from tests.client.puppet import Asked, Options, PuppetNode

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> dict[str, Any]:
    """An example's names, without running it."""
    return runpy.run_path(str(EXAMPLES / name))


def test_python_stream(client: Client, puppet: PuppetNode, capsys: pytest.CaptureFixture[str]) -> None:
    puppet.on_request = lambda asked: asked.answer("Because ", "of Rayleigh.")
    load("python_stream.py")["show"](client, "Why is the sky blue?")
    out, err = capsys.readouterr()
    assert out == "Because of Rayleigh."
    assert err == "\n[stop] 64.2 tokens/s\n"


def test_python_async(options: Options, puppet: PuppetNode, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(asked: Asked) -> None:
        if asked.request.prompt == "One?":
            asked.answer("Forty-two.")
        else:
            asked.refuse(ErrorCode.OVERLOADED, "too many")

    async def scenario() -> None:
        async with AsyncClient(**options) as client:
            await load("python_async.py")["answer_all"](client, ["One?", "Two?"])

    puppet.on_request = answer
    asyncio.run(scenario())
    assert capsys.readouterr().out == "One?\n    Forty-two.\nTwo?\n    (overloaded: too many)\n"
