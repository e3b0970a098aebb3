"""The prefix cache by itself: what it keeps, whom it serves, and what goes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.engine.prefix import Node, PrefixCache
from tests.engine.simulated import Cells

SLOT = 0


class Cached:
    """A cache, and requests that are computed at once and end."""

    def __init__(self, ids: int = 4, cells: int = 10_000) -> None:
        self.kv = Cells()
        self.cache = PrefixCache(self.kv, range(10, 10 + ids), cells)

    def begin(self, tokens: list[int], owner: str | None = "a", slot: int = SLOT) -> Node:
        """A request computes all of its tokens and runs on; where it stands."""
        node = self.cache.attach(slot, tokens, owner)
        self.kv.compute(slot, node.end, tokens[node.end :], owner)
        return self.cache.insert(slot, tokens, bytes(len(tokens)), owner, node)

    def end(self, node: Node, slot: int = SLOT) -> None:
        self.kv.drop(slot)
        self.cache.release(node)

    def keep(self, tokens: list[int], owner: str | None = "a") -> None:
        self.end(self.begin(tokens, owner))

    def found(self, tokens: list[int], owner: str | None = "a") -> int:
        """How much of the tokens is there for that owner."""
        length, _ = self.cache.peek([*tokens, -1], owner)
        return length


def run(start: int, count: int = 40) -> list[int]:
    return list(range(start, start + count))


def test_an_empty_cache_has_nothing() -> None:
    assert Cached().found(run(0)) == 0


def test_the_longest_common_beginning_is_found() -> None:
    cached = Cached()
    cached.keep(run(0, 100))
    assert cached.found([*run(0, 60), *run(900)]) == 60
    assert cached.found(run(0, 200)) == 100


def test_beginnings_of_a_few_tokens_are_not_worth_it() -> None:
    cached = Cached()
    cached.keep(run(0, 15))
    cached.keep(run(0, 100))
    assert cached.found([*run(0, 15), *run(900)]) == 0
    assert cached.found([*run(0, 16), *run(900)]) == 16


def test_two_continuations_share_their_beginning() -> None:
    cached = Cached()
    cached.keep([*run(0, 50), *run(100)])
    cached.keep([*run(0, 50), *run(200)])
    assert cached.cache.cells == cached.kv.used == 50 + 40 + 40
    assert cached.found([*run(0, 50), *run(100)]) == cached.found([*run(0, 50), *run(200)]) == 90


def test_an_owners_words_are_for_that_owner() -> None:
    cached = Cached()
    cached.keep(run(0, 50), "a")
    assert cached.found(run(0, 50), "b") == 0
    assert cached.found(run(0, 50), "a") == 50


def test_everybodys_words_are_for_everybody_and_owners_go_on_from_them() -> None:
    cached = Cached()
    cached.keep(run(0, 50), None)
    cached.keep([*run(0, 50), *run(100)], "a")
    assert cached.found([*run(0, 50), *run(100)], "a") == 90
    assert cached.found([*run(0, 50), *run(100)], "b") == 50
    assert cached.cache.cells == 90


def test_what_became_everybodys_later_is_found_beside_an_owners_own() -> None:
    cached = Cached()
    cached.keep(run(0, 30), "a")
    cached.keep(run(0, 50), None)
    assert cached.found(run(0, 50), "a") == cached.found(run(0, 50), "b") == 50
    cached.keep(run(0, 80), "a")
    assert cached.found(run(0, 80), "a") == 80


def test_what_was_of_no_use_for_longest_goes_first() -> None:
    cached = Cached()
    for start in (0, 100, 200):
        cached.keep(run(start))
    cached.keep(run(0))  # of use again
    assert cached.cache.evict(1) == 40
    assert [cached.found(run(start)) for start in (0, 100, 200)] == [40, 0, 40]


def test_a_common_beginning_outlives_its_continuations() -> None:
    cached = Cached()
    cached.keep([*run(0, 50), *run(100)])
    cached.keep([*run(0, 50), *run(200)])
    assert cached.cache.evict(41) == 80
    assert cached.found(run(0, 50)) == 50
    assert cached.kv.used == 50


def test_what_is_in_use_stays() -> None:
    cached = Cached()
    node = cached.begin(run(0))
    assert cached.cache.evict(1000) == 0
    assert (cached.cache.cells, cached.cache.locked) == (40, 40)
    cached.end(node)
    assert cached.cache.locked == 0
    assert cached.cache.evict(1000) == 40
    assert cached.kv.of == {}


beginnings = st.tuples(st.integers(0, 60), st.integers(0, 2), st.integers(1, 60), st.sampled_from("ab"))


@given(
    kept=st.lists(beginnings, max_size=3),
    running=st.lists(beginnings, max_size=5),
    stay=st.lists(st.booleans(), min_size=5, max_size=5),
    newcomer=beginnings,
)
def test_what_is_foretold_is_so_when_those_are_gone_and_it_has_come(
    kept: list[tuple[int, int, int, str]],
    running: list[tuple[int, int, int, str]],
    stay: list[bool],
    newcomer: tuple[int, int, int, str],
) -> None:
    """All begin alike for some tokens, and go on in one of three ways."""

    def tokens(alike: int, way: int, more: int) -> list[int]:
        return [*run(0, alike), *run(1000 * (way + 1), more)]

    cached = Cached(ids=20)
    for *parts, owner in kept:
        cached.keep(tokens(*parts), owner)
    nodes = [cached.begin(tokens(*parts), owner, slot) for slot, (*parts, owner) in enumerate(running)]
    going = [(slot, node) for slot, node in enumerate(nodes) if not stay[slot]]
    *parts, owner = newcomer
    foretold = cached.cache.peek(tokens(*parts), owner, [node for _, node in going])
    for slot, node in going:
        cached.kv.drop(slot)
        cached.cache._lock(node, -1)  # released, but nothing is let go for the allowance
    node = cached.cache.attach(9, tokens(*parts), owner)
    assert (node.end, cached.cache.locked) == foretold


def test_without_a_free_id_the_oldest_leaf_makes_way() -> None:
    cached = Cached(ids=2)
    for start in (0, 100, 200):
        cached.keep(run(start))
    assert [cached.found(run(start)) for start in (0, 100, 200)] == [0, 40, 40]


def test_where_all_ids_are_in_use_nothing_more_is_kept() -> None:
    cached = Cached(ids=1)
    node = cached.begin(run(0))
    other = cached.begin(run(100), slot=1)
    assert cached.found(run(100)) == 0
    cached.end(other, slot=1)
    cached.end(node)
    assert cached.cache.locked == 0


def test_without_ids_it_keeps_nothing_at_all() -> None:
    cached = Cached(ids=0)
    cached.keep(run(0))
    assert (cached.found(run(0)), cached.cache.cells, cached.kv.of) == (0, 0, {})


def test_a_sequence_goes_on_with_the_trees_cells_where_another_was_first() -> None:
    cached = Cached()
    first = cached.begin(run(0), slot=0)
    # The second one began before the first had finished its prompt, and found nothing.
    cached.kv.compute(1, 0, run(0, 45), "a")
    root = cached.cache.attach(2, run(900), "a")
    second = cached.cache.insert(1, run(0, 45), b"\1" * 45, "a", root)
    assert second.end == 45
    assert second.path_pristine == bytes(40) + b"\1" * 5
    assert cached.kv.used == cached.cache.cells == 45
    cached.end(first, slot=0)
    cached.end(second, slot=1)


@pytest.mark.parametrize(("pristine", "taken"), [(100, 96), (96, 96), (95, 64), (40, 32), (31, 0)])
def test_who_has_to_come_out_the_same_takes_whole_batches_that_were_computed_the_same_way(
    pristine: int, taken: int
) -> None:
    cached = Cached()
    cached.kv.compute(SLOT, 0, run(0, 120), "a")
    root = cached.cache.attach(1, run(900), "a")
    flags = b"\1" * pristine + bytes(5) + b"\1" * (115 - pristine)
    cached.end(cached.cache.insert(SLOT, run(0, 120), flags, "a", root))
    cached.keep([*run(0, 40), *run(500)])

    node = cached.cache.attach_exactly(SLOT, [*run(0, 120), -1], "a", 32)

    assert node.end == taken
    assert cached.cache.cells == cached.kv.used == taken, "everything else is gone"
    assert cached.cache.is_pristine(node)
    cached.end(node)


# --- the allowance ---


def test_what_nobody_asks_for_again_takes_no_more_than_its_part() -> None:
    cached = Cached(ids=40)
    for start in range(0, 3000, 100):
        cached.keep(run(start))
    assert cached.cache.cells <= 256 + 40


def test_the_last_one_stays_however_long_it_is() -> None:
    cached = Cached()
    cached.keep(run(0, 900))
    assert cached.found(run(0, 900)) == 900
    node = cached.begin(run(1000, 60))
    assert cached.found(run(0, 900)) == 900
    cached.end(node)
    assert cached.found(run(0, 900)) == 0


def in_vain(cached: Cached, requests: int, first: int = 100_000) -> None:
    """Requests that have nothing in common with each other."""
    for number in range(requests):
        cached.keep(run(first + 100 * number))


def test_where_nothing_is_ever_found_every_prompt_has_all_cells_for_itself() -> None:
    """So that its cells begin where llama.cpp's tiles of them do, and no step passes over others."""
    cached = Cached(ids=40)
    in_vain(cached, 63)
    assert cached.cache.cells == 6 * 40  # within the least allowance
    in_vain(cached, 1, first=50_000)
    assert cached.cache.cells == 40
    cached.begin(run(0))
    assert cached.cache.cells == 40  # its own: that of the one before went when it came


def test_even_then_the_last_one_is_there_for_whoever_goes_on_with_it() -> None:
    cached = Cached(ids=40)
    in_vain(cached, 70)
    cached.keep(run(0))
    assert cached.found(run(0, 80)) == 40


def test_a_miss_brings_the_allowance_back() -> None:
    cached = Cached(ids=40)
    in_vain(cached, 70)
    cached.keep(run(0))
    cached.keep(run(1000))
    assert cached.found(run(0)) == 0
    cached.keep(run(0))
    cached.keep(run(1000))
    assert cached.found(run(0)) == 40


def test_one_that_finds_something_is_one_that_counts() -> None:
    cached = Cached(ids=40)
    in_vain(cached, 60)
    cached.keep(run(100_000 + 100 * 59, 60))
    in_vain(cached, 10, first=50_000)
    assert cached.cache.cells == 6 * 40


def two_by_turns(cached: Cached, turns: int = 4) -> None:
    """Two conversations, together longer than what is allowed at first."""
    for _ in range(turns):
        cached.keep(run(0, 400))
        cached.keep(run(1000, 400), "b")


def test_what_is_missed_makes_the_allowance_grow() -> None:
    cached = Cached()
    two_by_turns(cached)
    assert cached.found(run(0, 400)) == cached.found(run(1000, 400), "b") == 400


def test_the_allowance_shrinks_when_nothing_is_found_any_more() -> None:
    cached = Cached(ids=100)
    two_by_turns(cached)
    for start in range(5000, 15_000, 100):
        cached.keep(run(start))
    assert cached.cache.cells <= 256 + 40
