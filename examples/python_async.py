"""Ask several questions at once, over one connection: python examples/python_async.py "First?" "Second?"."""
# ruff: noqa: INP001 - an example stands alone, in no package

import asyncio
import sys

from edged import AsyncClient
from edged.client import RequestFailed


async def answer(client: AsyncClient, prompt: str) -> str:
    """One answer; what the node refuses becomes a part of the text."""
    try:
        return (await client.ask(prompt, max_tokens=100)).text
    except RequestFailed as error:
        return f"({error.code}: {error})"


async def answer_all(client: AsyncClient, prompts: list[str]) -> None:
    """Print each question with its answer."""
    for prompt, text in zip(prompts, await asyncio.gather(*(answer(client, p) for p in prompts)), strict=True):
        sys.stdout.write(f"{prompt}\n    {text}\n")


async def main() -> None:
    """Ask the only node of the local broker; host=... and node=... name others."""
    async with AsyncClient() as client:
        await answer_all(client, sys.argv[1:] or ["What is MQTT?", "What is a GGUF file?"])


if __name__ == "__main__":
    asyncio.run(main())
