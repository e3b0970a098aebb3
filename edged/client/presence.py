"""Who is there: the nodes' status cards, and which node a client talks to."""

from __future__ import annotations

from edged.client.errors import NodeUndecided
from edged.wire.errors import WireError
from edged.wire.messages import Status, parse_status
from edged.wire.topics import Topics

#: The states in which a node serves nobody, and says nothing more to anybody.
GONE = frozenset({"offline", "lost"})
#: The most nodes whose cards are kept.
MAX_CARDS = 1000
#: How long after the first sight of one node another may still show up, seconds.
SETTLE_S = 0.2

#: The cards by node. Replaced at every change and never changed in place, so that any thread may read it.
Cards = dict[str, Status]


def update(cards: Cards, node: str, payload: bytes) -> Cards:
    """The cards with a new one of `node` taken in; the same object where nothing is to be learnt from it."""
    try:
        Topics(node)  # a name that no node may have is nobody to talk to
        card = parse_status(payload)
    except WireError:
        return cards
    known = cards.get(node)
    if card.node != node or (known is None and len(cards) >= MAX_CARDS):
        return cards
    if known is not None and card.state == "lost" and card.boot < known.boot:
        return cards  # the will of an earlier run, which the broker has only now given up
    return {**cards, node: card}


def alive(cards: Cards) -> list[Status]:
    """The cards of the nodes that live."""
    return [card for card in cards.values() if card.state not in GONE]


def decide_after(cards: Cards, patience: float) -> float:
    """How long after the subscription to the cards was granted `choose` may be asked, seconds.

    Args:
        cards: what was seen so far.
        patience: how long to wait for the first living node, seconds.
    """
    return min(SETTLE_S, patience) if alive(cards) else patience


def choose(cards: Cards, root: str) -> str:
    """The one node that lives.

    Raises:
        NodeUndecided: there are several, or none.
    """
    living = alive(cards)
    if len(living) != 1:
        raise NodeUndecided(root, tuple(sorted(cards.values(), key=lambda card: card.node)))
    return living[0].node
