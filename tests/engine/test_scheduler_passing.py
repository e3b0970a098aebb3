"""Who may run before one that came first and waits for room in the KV cache: whoever does not make it wait longer."""

from __future__ import annotations

import pytest

from edged.engine.sequence import Sequence
from tests.engine.simulated import Machine, sequence


def waiting_for_room(cells: int, first: int, *late: Sequence) -> Machine:
    """1 is long and runs, 2 finds no room beside it for its prompt of so many tokens, and then come others."""
    machine = Machine(cells=cells, slots=4, batch=512, cached=8)
    machine.scheduler.add(sequence(1, prompt=200, max_tokens=21))
    machine.step()
    machine.scheduler.add(sequence(2, prompt=first, max_tokens=5))
    for one in late:
        machine.scheduler.add(one)
    machine.step()
    return machine


def uids(machine: Machine) -> list[int]:
    return [one.uid for one in machine.scheduler.running]


def begins(machine: Machine) -> int:
    """After how many steps the second runs."""
    steps = 0
    while 2 not in uids(machine):
        assert machine.step() is not None
        steps += 1
    return steps


def test_whoever_is_done_before_there_is_room_for_the_first_may_pass_it() -> None:
    machine = waiting_for_room(320, 280, sequence(3, prompt=8, max_tokens=12), sequence(4, prompt=8, max_tokens=13))
    assert uids(machine) == [1, 3]  # 4 could take a step longer than 1
    assert begins(machine) == begins(waiting_for_room(320, 280))
    machine.run()
    assert all(one.preemptions == 0 for _, one in machine.finished.values())


@pytest.mark.parametrize(("cells", "running"), [(346, [1]), (347, [1, 3])])
def test_whoever_needs_no_more_than_is_left_beside_the_first_may_pass_it(cells: int, running: list[int]) -> None:
    """150 and 5 tokens for the first, a reserve of 32, and 160 for the other."""
    machine = waiting_for_room(cells, 150, sequence(3, prompt=10, max_tokens=150))
    assert uids(machine) == running
    assert begins(machine) == begins(waiting_for_room(cells, 150))
    machine.run()
    assert all(one.preemptions == 0 for _, one in machine.finished.values())


@pytest.mark.parametrize(("max_tokens", "running"), [(81, [1, 5, 3]), (82, [1, 5])])
def test_what_those_may_grow_by_that_stay_is_not_left_over(max_tokens: int, running: list[int]) -> None:
    machine = Machine(cells=400, slots=4, batch=512)
    machine.scheduler.add(sequence(1, prompt=200, max_tokens=20))
    machine.scheduler.add(sequence(5, prompt=20, max_tokens=70))
    machine.step()
    machine.scheduler.add(sequence(2, prompt=150, max_tokens=5))
    machine.scheduler.add(sequence(3, prompt=10, max_tokens=max_tokens))
    machine.step()
    assert uids(machine) == running


@pytest.mark.parametrize(("max_tokens", "running"), [(11, [1, 5, 3]), (12, [1, 5])])
def test_what_one_that_stays_needs_as_well_is_not_left_over(max_tokens: int, running: list[int]) -> None:
    """100 of the first tokens are the same cells for both."""
    machine = Machine(cells=430, slots=4, batch=512, cached=8)
    machine.scheduler.add(sequence(1, prompt=list(range(200)), max_tokens=20))
    machine.step()
    machine.scheduler.add(sequence(5, prompt=[*range(100), *range(500, 520)], max_tokens=70))
    machine.step()
    machine.scheduler.add(sequence(2, prompt=150, max_tokens=5))
    machine.scheduler.add(sequence(3, prompt=10, max_tokens=max_tokens))
    machine.step()
    assert uids(machine) == running


@pytest.mark.parametrize(("max_tokens", "running"), [(50, [1, 5, 3]), (90, [1, 5])])
def test_one_that_is_held_is_nobody_to_wait_for(max_tokens: int, running: list[int]) -> None:
    """It gives its place up as soon as the other one is done: then the first has room."""
    machine = Machine(cells=400, slots=4, batch=512)
    machine.scheduler.add(sequence(1, prompt=200, max_tokens=150))
    machine.scheduler.add(sequence(5, prompt=20, max_tokens=70))
    machine.step()
    machine.scheduler.running[0].timing.hold(0.0)
    machine.scheduler.add(sequence(2, prompt=330, max_tokens=5))
    machine.scheduler.add(sequence(3, prompt=10, max_tokens=max_tokens))
    machine.step()
    assert uids(machine) == running


def test_whoever_finds_no_room_itself_waits_as_well() -> None:
    assert uids(waiting_for_room(240, 190, sequence(3, prompt=8, max_tokens=5))) == [1]


def test_the_first_is_not_passed_for_ever() -> None:
    machine = waiting_for_room(320, 280)
    passed = 0
    while 2 not in uids(machine):
        machine.scheduler.add(sequence(10 + passed, prompt=3, max_tokens=2))
        passed += 1
        machine.step()
        assert passed <= 21
    assert machine.finished.keys() >= {10, 11, 12}
    machine.run()
    assert 2 in machine.finished
