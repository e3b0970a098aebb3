"""The starter model, engines that have loaded it, and what engines are to leave behind."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.engine import process
from edged.engine.files import ModelNotFound, resolve
from edged.engine.protocol import Load
from tests.engine import kinds
from tests.engine.handles import ROOT, Handle
from tests.engine.rig import Rig
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


@pytest.fixture
def rig(plain: Path) -> Iterator[Rig]:
    """A worker in the test's own process."""
    it = Rig(plain)
    try:
        yield it
    finally:
        it.close()


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


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The children are modules of the tests; and nobody waits long for them."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(process, "_BACKOFF_S", (0.01, 0.04))
    monkeypatch.setattr(process, "_GRACE_S", 5.0)


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """After each test: no thread, no file descriptor and no process more than before it."""
    gc.collect()  # what other tests have left is not to vanish in the midst of this one
    before = threading.active_count(), _descriptors(), _children()
    yield
    assert (threading.active_count(), _descriptors(), _children()) == before


def _descriptors() -> list[Path]:
    """The open file descriptors of this process."""
    return sorted(Path("/proc/self/fd").iterdir())


def _children() -> set[str]:
    """The pids of this process's children, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended since
            parent = stat.read_text().rpartition(")")[2].split()[1]
            found |= {stat.parent.name} if parent == str(os.getpid()) else set()
    return found
