"""The starter model, and engines that have loaded it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.engine.files import ModelNotFound, resolve
from edged.engine.protocol import Load
from tests.engine import kinds
from tests.engine.handles import Handle
from tests.engine.talk import Talk


@pytest.fixture(scope="session")
def starter() -> Path:
    """The starter model's file. Where it is missing the tests fail, and say what installs it."""
    try:
        return resolve("starter")
    except ModelNotFound as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model: what it says next depends on all that it has read."""
    path = tmp_path_factory.mktemp("plain") / "plain.gguf"
    kinds.write(path, "plain")
    return path


# One thread each: with as many as there are cores, any other load on the machine slows llama.cpp down twentyfold.


@pytest.fixture(scope="session")
def talk(starter: Path) -> Iterator[Talk]:
    """An engine with room for what the tests ask."""
    with Handle(Load(path=str(starter), context=2048, parallel=8, threads=1)) as handle:
        yield Talk(handle)


@pytest.fixture(scope="session")
def cramped(starter: Path) -> Iterator[Talk]:
    """An engine whose KV cache is too small for what its slots could hold: 256 tokens for 8 sequences."""
    with Handle(Load(path=str(starter), context=256, parallel=8, threads=1, digest="known")) as handle:
        yield Talk(handle)
