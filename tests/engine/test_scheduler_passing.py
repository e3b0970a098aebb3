"""Who may run before one that came first and waits for room in the KV cache: whoever does not make it wait longer."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from edged.engine.sequence import Sequence
from tests.engine.simulated import Machine, sequence


def waiting_for_room(machine: Machine, first: int, *late: Sequence) -> Machine:
    """2 finds no room beside those that run for its prompt of so many tokens, and then come others."""
    machine.scheduler.add(sequence(2, prompt=first, max_tokens=5))
    for one in late:
        machine.scheduler.add(one)
    machine.step()
    return machine


def running(cells: int, *sequences: Sequence, cached: int = 8, slots: int = 6) -> Machine:
    """Each of them runs when the next one comes."""
    machine = Machine(cells=cells, slots=slots, batch=512, cached=cached)
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


def test_whoever_is_done_before_there_is_room_for_the_first_may_pass_it() -> None:
    late = sequence(3, prompt=8, max_tokens=12), sequence(4, prompt=8, max_tokens=13)
    machine = waiting_for_room(long_one(320), 280, *late)
    assert uids(machine) == [1, 3]  # 4 could take a step longer than 1
    assert begins(machine) == begins(waiting_for_room(long_one(320), 280))
    machine.run()
    assert all(one.preemptions == 0 for _, one in machine.finished.values())


@pytest.mark.parametrize(("cells", "uids_then"), [(432, [1]), (433, [1, 3])])
def test_whoever_needs_no_more_than_is_left_beside_the_first_may_pass_it(cells: int, uids_then: list[int]) -> None:
    """150 and 5 tokens for the first, 160 for the other, a reserve of 32 for each, and an eighth for a short one."""
    machine = waiting_for_room(long_one(cells), 150, sequence(3, prompt=10, max_tokens=150))
    assert uids(machine) == uids_then
    assert begins(machine) == begins(waiting_for_room(long_one(cells), 150))
    machine.run()
    assert all(one.preemptions == 0 for _, one in machine.finished.values())


@pytest.mark.parametrize(("max_tokens", "uids_then"), [(81, [1, 5, 3]), (82, [1, 5])])
def test_what_those_may_grow_by_that_stay_is_not_left_over(max_tokens: int, uids_then: list[int]) -> None:
    machine = running(493, sequence(1, prompt=200, max_tokens=21), sequence(5, prompt=20, max_tokens=70), cached=0)
    assert uids(waiting_for_room(machine, 150, sequence(3, prompt=10, max_tokens=max_tokens))) == uids_then


@pytest.mark.parametrize(("max_tokens", "uids_then"), [(11, [1, 5, 3]), (12, [1, 5])])
def test_what_one_that_stays_needs_as_well_is_not_left_over(max_tokens: int, uids_then: list[int]) -> None:
    """100 of the first tokens are the same cells for both."""
    other = sequence(5, prompt=[*range(100), *range(500, 520)], max_tokens=70)
    machine = running(528, sequence(1, prompt=list(range(200)), max_tokens=20), other)
    assert uids(waiting_for_room(machine, 150, sequence(3, prompt=10, max_tokens=max_tokens))) == uids_then


@pytest.mark.parametrize(("max_tokens", "uids_then"), [(50, [1, 5, 3]), (90, [1, 5])])
def test_one_that_is_held_is_nobody_to_wait_for(max_tokens: int, uids_then: list[int]) -> None:
    """It gives its place up as soon as the other one is done: then the first has room."""
    machine = running(400, sequence(1, prompt=200, max_tokens=150), sequence(5, prompt=20, max_tokens=70))
    machine.scheduler.running[0].timing.hold(0.0)
    assert uids(waiting_for_room(machine, 330, sequence(3, prompt=10, max_tokens=max_tokens))) == uids_then


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
        assume(late or not any(one.preemptions for one in start))  # or there was too little room for them alone
        return steps

    alone = after()
    assert after(*sizes_late) <= alone
