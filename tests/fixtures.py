"""Fixtures of nodes; `tests/conftest.py` takes them in."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests import brokers
from tests.nodes import NodeProcess, ScriptedNode

_NUMBERS = itertools.count(1)

StartNode = Callable[..., NodeProcess]
StartScripted = Callable[..., ScriptedNode]


def _name() -> str:
    """A name that no other node on the shared broker has."""
    return f"node-{os.getpid()}-{next(_NUMBERS)}"


@pytest.fixture(scope="session")
def node(broker: brokers.Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """The real daemon with the starter model, shared by the session. Use request ids of your own; do not kill it."""
    with closing(NodeProcess(tmp_path_factory.mktemp("node"), broker.host, broker.port, _name())) as process:
        process.start()
        process.wait_ready()
        yield process


@pytest.fixture
def start_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartNode]:
    """Start real daemons of the test's own: `start_node(broker, EDGED_LIMITS__MAX_QUEUE="2")`."""
    with ExitStack() as stack:

        def start(broker: brokers.Broker, *, ready: bool = True, **environment: str) -> NodeProcess:
            process = NodeProcess(tmp_path_factory.mktemp("node"), broker.host, broker.port, _name(), **environment)
            stack.enter_context(closing(process))
            process.start()
            if ready:
                process.wait_ready()
            return process

        yield start


@pytest.fixture
def start_scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartScripted]:
    """Start daemons with a scripted engine: `start_scripted(broker, answer=…, limits={"max_queue": 2})`."""
    with ExitStack() as stack:

        def start(broker: brokers.Broker, **options: Any) -> ScriptedNode:
            name = options.pop("name", None) or _name()
            scripted = ScriptedNode(tmp_path_factory.mktemp("node"), broker.host, broker.port, name, **options)
            stack.enter_context(closing(scripted))
            scripted.start()
            return scripted

        yield start
