"""A node and a client on the shared broker, under topics of the test's own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from edged.client import Client
from tests.brokers import Broker
from tests.client.puppet import Options, PuppetNode


@pytest.fixture
def root() -> str:
    return f"test/{secrets.token_hex(6)}"


@pytest.fixture
def puppet(broker: Broker, root: str) -> Iterator[PuppetNode]:
    with PuppetNode(broker, root) as started:
        started.show("online")
        yield started


@pytest.fixture
def options(broker: Broker, root: str) -> Options:
    """How to reach the node."""
    return {"host": broker.host, "port": broker.port, "node": "kitchen", "topic_root": root, "away_timeout": 0.2}


@pytest.fixture
def client(options: Options) -> Iterator[Client]:
    with Client(**options) as made:
        yield made
