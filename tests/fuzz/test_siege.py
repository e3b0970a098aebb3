"""What the siege looks at, it sees: a node that dies, that complains, that grows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.brokers import Broker
from tests.fuzz.node import FuzzedNode, Size
from tests.fuzz.siege import Siege, SiegeError

SIZE = Size(memory_kib=50_000, journal_kib=20_000, files=17, threads=6)


@pytest.mark.parametrize("name", ["memory_kib", "journal_kib", "files", "threads"])
def test_what_grows_is_seen(tmp_path: Path, name: str) -> None:
    siege = Siege(FuzzedNode(tmp_path, "127.0.0.1", 1))
    siege.sizes = [SIZE] * 40
    assert not siege.growth()

    siege.sizes = [replace(SIZE, **{name: getattr(SIZE, name) * (100 + at) // 100}) for at in range(0, 200, 5)]

    assert name in siege.growth()


def test_a_node_that_has_ended_or_complains_is_reported_and_replaced(broker: Broker, tmp_path: Path) -> None:
    node = FuzzedNode(tmp_path, broker.host, broker.port, "besieged")
    siege = Siege(node)
    try:
        siege.fire([], version=5)
        node.kill()
        with pytest.raises(SiegeError, match="has ended"):
            siege.ask()
        siege.fire([], version=5)
        with node.log_file.open("a") as log:
            log.write("Traceback (most recent call last):\n")
        with pytest.raises(SiegeError, match="Traceback"):
            siege.fire([], version=5)
        siege.fire([], version=5)
        siege.rest()
    finally:
        node.kill()
