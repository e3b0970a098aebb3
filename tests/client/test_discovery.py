"""Which node is asked when none is named."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from edged.client import Client, NodeUndecided
from edged.client.presence import MAX_CARDS, update
from tests.brokers import Broker
from tests.client.puppet import Options, PuppetNode


@pytest.fixture
def anyone(options: Options) -> Options:
    """As `options`, with no node named."""
    return {**options, "node": None}


@pytest.fixture
def nodes(broker: Broker, root: str) -> Iterator[dict[str, PuppetNode]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(PuppetNode(broker, root, name)) for name in ("attic", "cellar", "shed")}


def test_the_only_living_node_is_asked(anyone: Options, nodes: dict[str, PuppetNode]) -> None:
    nodes["attic"].show("offline")
    nodes["cellar"].show("busy")
    nodes["shed"].show("lost")
    nodes["cellar"].on_request = lambda asked: asked.answer("It is ", "dark")
    with Client(**anyone) as client:
        assert client.connect() == "cellar"
        assert client.ask("Hello?").text == "It is dark"
        assert "".join(piece.text for piece in client.stream("Hello?")) == "It is dark"


def test_several_nodes_are_listed_and_none_is_guessed(anyone: Options, nodes: dict[str, PuppetNode]) -> None:
    nodes["shed"].show("lost")
    nodes["cellar"].show("busy")
    nodes["attic"].show("online")
    with (
        Client(**anyone) as client,
        pytest.raises(NodeUndecided, match=r"attic \(online\), cellar \(busy\), shed \(lost\); choose one") as caught,
    ):
        client.stream("Hello?")
    assert caught.value.choices == ("attic", "cellar")
    assert [card.state for card in caught.value.nodes] == ["online", "busy", "lost"]
    assert all(puppet.asked_nothing() for puppet in nodes.values())


def test_no_node_is_an_error_that_says_how_to_name_one(anyone: Options) -> None:
    with (
        Client(**anyone, discovery_timeout=0.1) as client,
        pytest.raises(NodeUndecided, match=r"no node was seen under .*/\+/status.*node=NAME") as caught,
    ):
        client.connect()
    assert caught.value.nodes == ()


def test_only_dead_nodes_are_listed_as_such(anyone: Options, nodes: dict[str, PuppetNode]) -> None:
    nodes["shed"].show("lost")
    with (
        Client(**anyone, discovery_timeout=2) as client,
        pytest.raises(NodeUndecided, match=r"no node lives under .*: shed \(lost\)") as caught,
    ):
        client.connect()
    assert caught.value.choices == ()


def test_a_node_that_comes_a_little_later_is_found(anyone: Options, nodes: dict[str, PuppetNode]) -> None:
    with Client(**anyone, discovery_timeout=30) as client:
        later = threading.Timer(0.3, nodes["shed"].show, ["online"])
        later.start()
        assert client.connect() == "shed"
        later.join()


def test_what_is_no_card_of_that_node_is_passed_over(puppet: PuppetNode) -> None:
    card = puppet.card("online").payload()
    assert update({}, "kitchen", b"no card") == {}
    assert update({}, "another", card) == {}
    assert update({}, "pool", puppet.card("online").model_copy(update={"node": "pool"}).payload()) == {}
    assert update({}, "a b", puppet.card("online").model_copy(update={"node": "a b"}).payload()) == {}
    assert list(update({}, "kitchen", card)) == ["kitchen"]


def test_the_number_of_cards_is_bounded(puppet: PuppetNode) -> None:
    full = {f"n{n}": puppet.card("online") for n in range(MAX_CARDS)}
    assert update(full, "kitchen", puppet.card("online").payload()) is full
