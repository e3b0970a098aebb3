"""Who may run before one that came first and waits for room in the KV cache: whoever does not make it wait longer.

Short ones give their places back for that; others have to be done by then, or to fit beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from edged.engine.sequence import Sequence
from tests.engine.simulated import Machine, sequence, token


def waiting_for_room(machine: Machine, first: int, *late: Sequence) -> Machine:
    """2 finds no room beside those that run for its prompt of so many tokens, and then come others."""
    machine.scheduler.add(sequence(2, prompt=first, max_tokens=5))
    for one in late:
        machine.scheduler.add(one)
    machine.step()
    return machine


def running(cells: int, *sequences: Sequence, cached: int = 8, slots: int = 6) -> Machine:
    """Each of them runs when the next one comes."""
    machine = Machine(cells=cells, slots=slots, batch=2048, cached=cached)
    for one in sequences:
        machine.scheduler.add(one)
        machine.step()
    return machine


def long_one(cells: int) -> Machine:
    return running(cells, sequence(1, prompt=200, max_tokens=21))


def uids(machine: Machine) -> list[int]:
    return [one.uid for one in machine.scheduler.running]


def begins(machine: Machine, late: Iterable[Sequence] = ()) -> int:
    """After how many steps 2 runs, where others come one by one."""
    steps, coming = 0, iter(late)
    while 2 not in uids(machine):
        if (one := next(coming, None)) is not None:
            machine.scheduler.add(one)
        assert machine.step() is not None
        steps += 1
    return steps


def test_short_ones_pass_where_there_is_room_and_yield_when_the_first_has_it_without_them() -> None:
    late = sequence(3, prompt=8, max_tokens=12), sequence(4, prompt=8, max_tokens=500)
    machine = waiting_for_room(long_one(320), 280, *late)
    assert uids(machine) == [1, 3, 4]
    assert begins(machine) == begins(waiting_for_room(long_one(320), 280))
    assert uids(machine) == [2], "280 of 320 cells and a reserve: nobody fits beside it"
    said = len(late[1].tokens)
    assert said > 8
    machine.run()
    assert [one.preemptions for one in late] == [0, 1]
    assert late[1].tokens[8:] == [token(4, 8 + i) for i in range(313)], "all that there is room for"


def test_whoever_is_short_stays_where_the_first_leaves_room_for_it_anyway() -> None:
    """An eighth of the cells are 250. With their reserves and what they have said, 3 and 4 have 130 each by then."""
    machine = running(2000, sequence(1, prompt=1500, max_tokens=21))
    late = [sequence(uid, prompt=78, max_tokens=100) for uid in (3, 4, 5)]
    machine = waiting_for_room(machine, 1600, *late)
    assert uids(machine) == [1, 3, 4, 5]
    assert begins(machine) == begins(waiting_for_room(running(2000, sequence(1, prompt=1500, max_tokens=21)), 1600))
    assert uids(machine) == [2, 3, 4]
    machine.run()
    assert [one.preemptions for one in late] == [0, 0, 1]


def test_only_those_yield_that_are_in_the_way() -> None:
    """The youngest is asked first. Where it needs too little to be of use, it stays."""
    machine = running(1000, sequence(1, prompt=600, max_tokens=21))
    late = sequence(3, prompt=100, max_tokens=100), sequence(4, prompt=3, max_tokens=100)
    machine = waiting_for_room(machine, 830, *late)
    assert uids(machine) == [1, 3, 4]
    begins(machine)
    assert uids(machine) == [2, 4]


def test_whoever_passed_into_the_last_slot_gives_it_to_the_first() -> None:
    machine = running(1000, sequence(1, prompt=600, max_tokens=21), sequence(5, prompt=3, max_tokens=500), slots=3)
    machine = waiting_for_room(machine, 600, sequence(3, prompt=8, max_tokens=500), sequence(4, prompt=8, max_tokens=9))
    assert uids(machine) == [1, 5, 3]
    begins(machine)
    assert uids(machine) == [5, 2, 3]
    machine.run()


def test_while_short_ones_have_the_other_slots_the_first_leaves_room_for_them_as_well() -> None:
    """They will be done soon, and others like them will come, who would find no room until the first has ended."""
    machine = running(1000, sequence(1, prompt=600, max_tokens=500), sequence(5, prompt=3, max_tokens=500), slots=4)
    machine = waiting_for_room(machine, 250, sequence(3, prompt=8, max_tokens=2))
    assert uids(machine) == [1, 5, 3]
    machine.scheduler.add(sequence(4, prompt=8, max_tokens=2))
    machine.step()
    assert uids(machine) == [1, 5, 4]


def test_who_yields_to_one_that_waits_has_its_turn_after_that_one() -> None:
    machine = running(1000, sequence(1, prompt=600, max_tokens=21))
    machine = waiting_for_room(machine, 840, sequence(3, prompt=100, max_tokens=100), sequence(4, prompt=500))
    assert uids(machine) == [1, 3]
    begins(machine)
    machine.scheduler.add(sequence(5, prompt=20, max_tokens=100))
    machine.step()
    assert uids(machine) == [2, 5], "3 has no room beside 2, 5 has"


@pytest.mark.parametrize(("max_tokens", "uids_then"), [(15, [1, 3]), (16, [1])])
def test_whoever_is_not_short_may_pass_where_it_is_done_before_there_is_room_for_the_first(
    max_tokens: int, uids_then: list[int]
) -> None:
    machine = running(640, sequence(1, prompt=300, max_tokens=116))
    machine = waiting_for_room(machine, 560, sequence(3, prompt=100, max_tokens=max_tokens))
    assert uids(machine) == uids_then  # or it could take a step longer than 1
    assert begins(machine) == begins(waiting_for_room(running(640, sequence(1, prompt=300, max_tokens=116)), 560))
    machine.run()
    assert all(one.preemptions == 0 for _, one in machine.finished.values())


@pytest.mark.parametrize(("cells", "uids_then"), [(432, [1]), (433, [1, 3])])
def test_whoever_needs_no_more_than_is_left_beside_the_first_may_pass_it(cells: int, uids_then: list[int]) -> None:
    """150 and 5 tokens for the first, 160 for the other, a reserve of 32 for each, and an eighth for a short one."""
    machine = waiting_for_room(long_one(cells), 150, sequence(3, prompt=60, max_tokens=100))
    assert uids(machine) == uids_then
    assert begins(machine) == begins(waiting_for_room(long_one(cells), 150))
    machine.run()
    assert all(one.preemptions == 0 for _, one in machine.finished.values())


@pytest.mark.parametrize(("max_tokens", "uids_then"), [(26, [1, 5, 3]), (27, [1, 5])])
def test_what_those_may_grow_by_that_stay_is_not_left_over(max_tokens: int, uids_then: list[int]) -> None:
    machine = running(493, sequence(1, prompt=200, max_tokens=21), sequence(5, prompt=20, max_tokens=70), cached=0)
    assert uids(waiting_for_room(machine, 150, sequence(3, prompt=65, max_tokens=max_tokens))) == uids_then


@pytest.mark.parametrize(("max_tokens", "uids_then"), [(6, [1, 5, 3]), (7, [1, 5])])
def test_what_one_that_stays_needs_as_well_is_not_left_over(max_tokens: int, uids_then: list[int]) -> None:
    """100 of the first tokens are the same cells for both."""
    other = sequence(5, prompt=[*range(100), *range(500, 520)], max_tokens=70)
    machine = running(596, sequence(1, prompt=list(range(300)), max_tokens=20), other)
    assert uids(waiting_for_room(machine, 150, sequence(3, prompt=75, max_tokens=max_tokens))) == uids_then


@pytest.mark.parametrize(("max_tokens", "uids_then"), [(10, [1, 5, 3]), (50, [1, 5])])
def test_one_that_is_held_is_nobody_to_wait_for(max_tokens: int, uids_then: list[int]) -> None:
    """It gives its place up as soon as the other one is done: then the first has room."""
    machine = running(440, sequence(1, prompt=200, max_tokens=150), sequence(5, prompt=20, max_tokens=70))
    machine.scheduler.running[0].timing.hold(0.0)
    assert uids(waiting_for_room(machine, 370, sequence(3, prompt=56, max_tokens=max_tokens))) == uids_then


def test_whoever_finds_no_room_itself_waits_as_well() -> None:
    assert uids(waiting_for_room(long_one(240), 190, sequence(3, prompt=8, max_tokens=5))) == [1]


def test_where_all_slots_are_taken_all_wait() -> None:
    machine = running(999, *(sequence(10 + number, prompt=3, max_tokens=50) for number in range(6)))
    assert uids(waiting_for_room(machine, 5, sequence(3, prompt=3, max_tokens=2))) == [10, 11, 12, 13, 14, 15]


def test_the_first_is_not_passed_for_ever() -> None:
    machine = waiting_for_room(long_one(320), 280)
    short = (sequence(10 + number, prompt=3, max_tokens=2) for number in count())
    assert begins(machine, short) <= 20
    assert machine.finished.keys() >= {10, 11, 12}
    machine.run()
    assert 2 in machine.finished


sizes = st.tuples(st.integers(1, 120), st.integers(1, 60))


@given(
    cells=st.integers(150, 400),
    sizes_running=st.lists(sizes, min_size=1, max_size=3),
    first=st.integers(1, 120),
    sizes_late=st.lists(sizes, min_size=1, max_size=6),
    cached=st.sampled_from([0, 8]),
    slots=st.integers(3, 6),
)
@example(194, [(1, 5), (55, 34), (1, 3)], 74, [(1, 33)], 0, 4)  # who passes has the last slot, where no room is left
def test_where_all_generate_all_they_may_the_first_runs_no_later_than_alone(
    cells: int,
    sizes_running: list[tuple[int, int]],
    first: int,
    sizes_late: list[tuple[int, int]],
    cached: int,
    slots: int,
) -> None:
    def after(*late: tuple[int, int]) -> int:
        start = [sequence(10 + n, prompt=prompt, max_tokens=most) for n, (prompt, most) in enumerate(sizes_running)]
        machine = running(cells, *start, cached=cached, slots=slots)
        while any(one.pending > 1 for one in start if one.uid not in machine.finished):
            machine.step()  # or whoever passes would share the steps with a prompt
        waiting_for_room(machine, first)
        coming = (sequence(100 + n, prompt=prompt, max_tokens=most) for n, (prompt, most) in enumerate(late))
        steps = begins(machine, coming)
        needed = sum(len(one.tokens) - one.kept for one in machine.scheduler.running) + machine.cache.locked
        assert needed <= cells, "whoever made room made enough"
        assume(late or not any(one.preemptions for one in start))  # or there was too little room for them alone
        return steps

    alone = after()
    assert after(*sizes_late) <= alone
