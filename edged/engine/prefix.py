"""What was computed for earlier requests, kept in the KV cache for those that begin alike.

A radix tree over tokens (as in Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs",
section 3): every node is a run of tokens, and a path from the root is a beginning that needs no prefill. The cells
stay where they are; llama.cpp's sequence ids keep them alive, one for every leaf, which holds the whole path to it.

A node belongs to the owner whose request left it, and only that owner's requests find it; else how fast an answer
begins would tell what others have asked. Nodes without an owner hold the operator's own words and serve everybody; an
owner's may hang below them, never the other way round. Knows tokens and cells, nothing of llama.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from edged.engine.allowance import Allowance, alike

#: Beginnings shorter than this are computed again sooner than they are looked after: tokens.
_LEAST = 16


class KVCache(Protocol):
    """The cells of the KV cache. A cell may belong to several sequences; nobody's is free."""

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Let the target own the source's cells of positions `start` to `end` (exclusive) as well."""

    def drop(self, sequence: int, start: int = 0, end: int | None = None) -> bool:
        """Take away a sequence's cells of positions `start` to `end` (exclusive; None = all that follow).

        Returns:
            False where this kind of cache can only be dropped whole, and nothing was done.
        """


@dataclass(slots=True, eq=False)
class Node:
    """A run of tokens behind its parent's.

    Attributes:
        pristine: for each token 1 where it was computed as in an empty cache by a request alone: in the cell of its
            position and in a whole physical batch. Else 0, for its last digits may differ.
        end: the position behind its last token.
        locks: how many running sequences stand on it or below it.
        used: when it was last of use; a counter.
        reach: how many cells were in use at most while it was computed: its own are not behind that.
        sequence: of a leaf: llama.cpp's sequence id that keeps the path to it; -1 above.
    """

    tokens: list[int]
    pristine: bytes
    parent: Node | None
    owner: str | None
    end: int
    locks: int = 0
    used: int = 0
    reach: int = 0
    sequence: int = -1
    children: dict[tuple[str | None, int], Node] = field(default_factory=dict)

    @property
    def start(self) -> int:
        """The position of its first token."""
        return self.end - len(self.tokens)

    @property
    def path_pristine(self) -> bytes:
        """`pristine` of all tokens from the root to its end."""
        return b"".join(reversed([node.pristine for node in self.path()]))

    def path(self) -> Iterator[Node]:
        """Itself and what is above it, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


class PrefixCache:
    """The tree.

    Args:
        kv: the cells.
        sequences: llama.cpp's sequence ids that it may use, one for each leaf; without any, it keeps nothing.
        cells: of the whole KV cache.

    Attributes:
        cells: that it holds, those included that running sequences use as well.
        locked: of them, those that running sequences use: they cannot be evicted.
    """

    def __init__(self, kv: KVCache, sequences: Iterable[int], cells: int) -> None:
        self._kv = kv
        self._allowance = Allowance(cells)
        self._free = list(sequences)
        self._root = Node([], b"", None, None, 0)
        self._leaves: dict[int, Node] = {}
        self._clock = 0
        self.cells = 0
        self.locked = 0

    def attach(self, slot: int, tokens: list[int], owner: str | None) -> Node:
        """Give a running sequence the longest beginning of its tokens that there is.

        At least the last token is left to compute, because only that brings logits.

        Args:
            slot: the sequence, which has no cells yet.
            tokens: all of its tokens.
            owner: whose it is.

        Returns:
            The node it stands on, locked until `release`; its `end` is how many tokens need no prefill.
        """
        node, length = self._find(self._root, tokens[:-1], owner)
        return self._stand(slot, tokens, owner, node, length)

    def attach_exactly(self, slot: int, tokens: list[int], owner: str | None, ubatch: int) -> Node:
        """Like `attach`, for a sequence that has to come out the same to the last digit, and is alone.

        It takes over only what it would have computed in just the same way, and everything else goes: so its own
        tokens get the cells that they would have in an empty cache. How they lie there decides in which order their
        shares are added up.

        Args:
            slot: the sequence, which has no cells yet.
            tokens: all of its tokens.
            owner: whose it is.
            ubatch: tokens that are computed at once.
        """
        node, length = self._find(self._root, tokens[:-1], owner)
        end = node.path_pristine.find(0)
        length = min(length, end if end >= 0 else length) // ubatch * ubatch
        while node.parent is not None and length <= node.start:
            node = node.parent
        node = self._stand(slot, tokens, owner, node, length)
        self.evict(self.cells)
        return node

    def is_pristine(self, node: Node) -> bool:
        """Whether the cache is as if only a sequence that stands on this node had ever used it."""
        return self.cells == node.end and 0 not in node.path_pristine

    def _stand(self, slot: int, tokens: list[int], owner: str | None, node: Node, length: int) -> Node:
        """Let a sequence begin with the first `length` tokens of the path to a node."""
        self._allowance.asked(owner, tokens, length if length >= _LEAST else 0)
        if length < _LEAST:
            if not self._allowance.cells:
                self._shrink()
            return self._root
        if length < node.end:
            node = self._split(node, length)
        self._kv.copy(self._leaf_below(node).sequence, slot, 0, length)
        self._lock(node, 1)
        return node

    def peek(self, tokens: list[int], owner: str | None, released: Iterable[Node] = ()) -> tuple[int, int]:
        """How it would be if a sequence attached.

        Args:
            tokens: all of its tokens.
            owner: whose it is.
            released: nodes that running sequences stand on, once for each of them that would be gone by then.

        Returns:
            How many of the tokens it would find, and how many cells would be locked then.
        """
        gone = Counter(one for node in released for one in node.path())
        locked = self.locked - sum(len(one.tokens) for one, locks in gone.items() if one.locks == locks)
        node, length = self._find(self._root, tokens[:-1], owner)
        if length < _LEAST:
            return 0, locked
        return length, locked + sum(min(one.end, length) - one.start for one in node.path() if one.locks == gone[one])

    def insert(
        self,
        slot: int,
        tokens: list[int],
        pristine: bytes,
        owner: str | None,
        stands_on: Node,
        *,
        reach: int = 0,
    ) -> Node:
        """Keep what a sequence has computed.

        Where the tree has some of it already, the sequence's own cells for that are given back for the tree's.

        Args:
            slot: the sequence.
            tokens: those that are computed, from the first on.
            pristine: how; see `Node.pristine`.
            owner: whose it is to be; None = everybody's.
            stands_on: the node that it has a lock on.
            reach: how many cells were in use at most while the sequence was computed.

        Returns:
            The node it stands on from now on, locked instead of the other.
        """
        node, length = self._find(self._root, tokens, owner)
        if len(tokens) < _LEAST or length < stands_on.end:
            return stands_on
        if length < node.end:
            node = self._split(node, length)
        self._lock(node, 1)  # first, so that making room cannot take it away
        self._lock(stands_on, -1)
        start = stands_on.end if stands_on in (self._root, *node.path()) else 0
        if length > start:
            self._kv.drop(slot, start, length)
            self._kv.copy(self._leaf_below(node).sequence, slot, start, length)
        if length == len(tokens):
            return node
        leaf = self._append(node, tokens[length:], pristine[length:], owner)
        if leaf is None:
            return node
        leaf.reach = reach
        self._kv.copy(slot, leaf.sequence, length, len(tokens))
        self._lock(leaf, 1)
        self._lock(node, -1)
        return leaf

    def release(self, node: Node) -> None:
        """A sequence that stood on the node is gone. Unused leaves beyond the allowance go, but for the last one."""
        self._lock(node, -1)
        self._shrink(but=self._clock)

    def _shrink(self, but: int = -1) -> None:
        """Let unused leaves go that are beyond the allowance, but for the one that was used at that time."""
        allowed = self._allowance.cells
        for leaf in sorted(self._leaves.values(), key=lambda one: one.used):
            # Not only how many cells are used counts, but how far they reach: a step passes over all up to the last.
            too_many = self.cells - self.locked > allowed or leaf.reach > allowed
            # The last one stays however long it is, unless it only lies far because of others.
            last = leaf.used == but and leaf.reach <= leaf.end + allowed
            if too_many and not leaf.locks and not last:
                tokens = [token for one in reversed(list(leaf.path())) for token in one.tokens]
                self._allowance.dropped(leaf.owner, tokens)
                self._remove(leaf)

    def evict(self, cells: int) -> int:
        """Free at least so many cells, those first that were of no use for longest; returns how many it freed."""
        freed = 0
        while freed < cells and (leaf := self._oldest()) is not None:
            freed += len(leaf.tokens)
            self._remove(leaf)
        return freed

    def _find(self, node: Node, tokens: list[int], owner: str | None) -> tuple[Node, int]:
        """The deepest node that shares a beginning with the tokens below `node`, and how long that is."""
        best, longest = node, node.end
        if longest >= len(tokens):
            return best, longest
        for who in {None, owner} if node.owner is None else {owner}:
            child = node.children.get((who, tokens[node.end]))
            if child is None:
                continue
            length = child.start + alike(child.tokens, tokens[child.start : child.end])
            found = (child, length) if length < child.end else self._find(child, tokens, owner)
            if found[1] > longest:
                best, longest = found
        return best, longest

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node in two at that position; returns the upper one."""
        assert node.parent is not None  # noqa: S101 - the root has no tokens to cut
        keep = at - node.start
        upper = Node(
            node.tokens[:keep], node.pristine[:keep], node.parent, node.owner, at, node.locks, node.used, node.reach
        )
        node.parent.children[node.owner, node.tokens[0]] = upper
        node.tokens, node.pristine, node.parent = node.tokens[keep:], node.pristine[keep:], upper
        upper.children[node.owner, node.tokens[0]] = node
        return upper

    def _append(self, parent: Node, tokens: list[int], pristine: bytes, owner: str | None) -> Node | None:
        """Make a leaf below a node, with a sequence id that keeps the path to it; None where none is to be had."""
        while parent.sequence < 0 and not self._free:
            if not self.evict(1):
                return None
        if parent.sequence >= 0:  # a leaf so far: its own goes on in the new one
            sequence, parent.sequence = parent.sequence, -1
            del self._leaves[sequence]
        else:
            sequence = self._free.pop()
            if parent.end:
                self._kv.copy(self._leaf_below(parent).sequence, sequence, 0, parent.end)
        leaf = Node(tokens, pristine, parent, owner, parent.end + len(tokens), sequence=sequence)
        parent.children[owner, tokens[0]] = leaf
        self._leaves[sequence] = leaf
        self.cells += len(tokens)
        return leaf

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None  # noqa: S101 - the root is no leaf
        del parent.children[leaf.owner, leaf.tokens[0]]
        del self._leaves[leaf.sequence]
        self.cells -= len(leaf.tokens)
        if parent.children or parent.parent is None:
            self._kv.drop(leaf.sequence)
            self._free.append(leaf.sequence)
        else:  # the parent is a leaf now
            self._kv.drop(leaf.sequence, parent.end)
            parent.sequence = leaf.sequence
            self._leaves[parent.sequence] = parent

    def _oldest(self) -> Node | None:
        return min((leaf for leaf in self._leaves.values() if not leaf.locks), key=lambda n: n.used, default=None)

    def _lock(self, node: Node, change: int) -> None:
        self._clock += 1
        for one in node.path():
            before, one.locks, one.used = one.locks, one.locks + change, self._clock
            self.locked += len(one.tokens) * ((one.locks > 0) - (before > 0))

    @staticmethod
    def _leaf_below(node: Node) -> Node:
        while node.children:
            node = next(iter(node.children.values()))
        return node
