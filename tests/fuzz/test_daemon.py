"""Nothing that is published makes the daemon exit, hang, or grow, and what was accepted ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.brokers import LocalBroker
from tests.fuzz.campaign import campaign
from tests.fuzz.node import FuzzedNode
from tests.fuzz.siege import Siege

#: Of 16 to 32 messages each.
BATCHES = 100


@pytest.fixture
def siege(private_broker: LocalBroker, tmp_path: Path) -> Iterator[Siege]:
    node = FuzzedNode(tmp_path, private_broker.host, private_broker.port)
    with ExitStack() as stack:
        stack.callback(node.kill)
        yield Siege(node)


@pytest.mark.timeout(900)  # it takes 15 s; only a batch that does harm has to be made small, which takes minutes
def test_after_whatever_was_published_the_node_answers_and_has_not_grown(siege: Siege) -> None:
    campaign(siege, count=BATCHES, number=4)
    siege.rest()

    assert siege.fired >= 16 * BATCHES
    assert siege.dismissed <= BATCHES // 10, "the broker hangs up: most of this reaches no node"
    assert not siege.growth()
