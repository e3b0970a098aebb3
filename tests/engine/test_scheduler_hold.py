"""A sequence that is held is in no step, and nobody waits for it."""

from __future__ import annotations

import pytest

from edged.engine.sequence import Sequence
from tests.engine.simulated import Machine, Step, sequence, token


def start(machine: Machine, *ones: Sequence) -> None:
    for one in ones:
        machine.scheduler.add(one)
    machine.step()


def step(machine: Machine) -> Step:
    done = machine.step()
    assert done is not None
    return done


def hold(one: Sequence) -> None:
    one.timing.hold(0.0)


def idle(machine: Machine) -> bool:
    return machine.scheduler.idle


def release(one: Sequence) -> None:
    one.timing.release(0.0)


def test_who_is_held_keeps_its_place_and_the_others_go_on() -> None:
    machine = Machine(cells=1000)
    one, other = sequence(1, prompt=4, max_tokens=50), sequence(2, prompt=4, max_tokens=50)
    start(machine, one, other)
    hold(one)
    said, slot = len(one.tokens), one.slot
    for _ in range(5):
        assert step(machine).decoded == [2]
    assert (len(one.tokens), one.slot, one.preemptions) == (said, slot, 0)
    release(one)
    assert step(machine).decoded == [1, 2]
    machine.run()
    assert one.tokens[4:] == [token(1, 4 + i) for i in range(50)]


def test_a_prompt_that_is_held_in_the_middle_leaves_the_step_to_others_and_goes_on_where_it_was() -> None:
    machine = Machine(cells=1000, batch=16)
    long = sequence(1, prompt=64, max_tokens=1)
    start(machine, long)
    assert long.computed == 16
    hold(long)
    machine.scheduler.add(sequence(2, prompt=40, max_tokens=1))
    assert [step(machine).prefilled for _ in range(3)] == [{2: 16}, {2: 16}, {2: 8}]
    assert long.computed == 16
    release(long)
    assert step(machine).prefilled == {1: 16}


def test_where_all_are_held_there_is_nothing_to_do_until_one_is_released() -> None:
    machine = Machine(cells=1000)
    ones = [sequence(uid, prompt=4, max_tokens=3) for uid in (1, 2)]
    start(machine, *ones)
    hold(ones[0])
    assert not idle(machine)
    hold(ones[1])
    assert machine.step() is None
    assert idle(machine)
    release(ones[1])
    assert not idle(machine)
    machine.run()
    assert machine.finished.keys() == {2}
    release(ones[0])
    machine.run()
    assert machine.finished.keys() == {1, 2}


def test_who_is_held_before_its_turn_waits_and_those_behind_it_do_not() -> None:
    machine = Machine(cells=1000, slots=1)
    first, second = sequence(1, prompt=4, max_tokens=2), sequence(2, prompt=4, max_tokens=2)
    machine.scheduler.add(first)
    hold(first)
    start(machine, second)
    assert machine.scheduler.running == [second]
    machine.run()
    assert machine.finished.keys() == {2}
    assert machine.scheduler.find(1) is first
    release(first)
    third = sequence(3, prompt=4, max_tokens=2)
    machine.scheduler.add(third)
    machine.run()
    assert list(machine.finished) == [2, 1, 3], "it is the oldest again"


def test_who_is_held_is_cancelled_wherever_it_is() -> None:
    machine = Machine(cells=1000, slots=1)
    running, waiting = sequence(1, prompt=4), sequence(2, prompt=4)
    start(machine, running, waiting)
    for one in (running, waiting):
        hold(one)
    for one in (running, waiting):
        machine.finish(one, "cancelled")
    assert machine.step() is None
    assert machine.scheduler.idle
    assert machine.kv.used == 0


def test_one_that_is_held_keeps_its_place_where_giving_it_up_would_not_be_enough() -> None:
    """The newcomer is long: beside the first it has to leave an eighth."""
    machine = Machine(cells=400, slots=3, cached=6, batch=512)
    first, held = sequence(1, prompt=200, max_tokens=40), sequence(2, prompt=60, max_tokens=40)
    start(machine, first, held)
    machine.step()
    hold(held)
    start(machine, sequence(3, prompt=100, max_tokens=3))
    machine.step()
    assert held.slot >= 0
    assert held.preemptions == 0


@pytest.mark.parametrize("held", [1, 2, 3])
def test_the_place_of_one_that_is_held_is_given_to_whoever_needs_a_slot(held: int) -> None:
    machine = Machine(cells=1000, slots=3, cached=6, batch=256)
    ones = [sequence(uid, prompt=30, max_tokens=40) for uid in (1, 2, 3)]
    start(machine, *ones)
    machine.step()
    for one in ones[:held]:
        hold(one)
    newcomer = sequence(4, prompt=30, max_tokens=3)
    start(machine, newcomer)
    assert newcomer.slot >= 0
    assert [one.preemptions for one in ones] == [int(one is ones[held - 1]) for one in ones], "the youngest held one"
    while newcomer.uid not in machine.finished:
        machine.step()
    for one in ones[:held]:
        release(one)
    assert step(machine).decoded == [1, 2, 3], "it finds its cells where it left them"
    machine.run()
    for one in ones:
        assert one.tokens[30:] == [token(one.uid, 30 + i) for i in range(40)]


def test_the_cells_of_one_that_is_held_are_given_to_those_that_grow() -> None:
    machine = Machine(cells=120, slots=4)
    old, young = sequence(1, prompt=30, max_tokens=80), sequence(2, prompt=10, max_tokens=100)
    start(machine, old, young)
    for _ in range(5):
        machine.step()
    hold(old)
    while young.uid not in machine.finished:
        machine.step()
    assert (old.preemptions, young.preemptions) == (1, 0)
    assert old.is_held
    assert machine.scheduler.find(1) is old
    release(old)
    machine.run()
    assert old.tokens[30:] == [token(1, 30 + i) for i in range(80)]


def test_nobody_gives_its_place_up_where_that_is_not_enough() -> None:
    machine = Machine(cells=400, slots=4, batch=400)
    active, held = sequence(1, prompt=200, max_tokens=20), sequence(2, prompt=20, max_tokens=20)
    start(machine, active, held)
    hold(held)
    start(machine, sequence(3, prompt=350, max_tokens=2))
    assert held.preemptions == 0
    assert machine.scheduler.running == [active, held]
    while 1 not in machine.finished:
        machine.step()
    machine.step()
    assert [one.uid for one in machine.scheduler.running] == [3], "but nobody waits for one that is held alone"


def test_an_older_one_that_comes_back_counts_as_older() -> None:
    """Else it would be sent away again and again by those that came after it."""
    machine = Machine(cells=130, slots=2, batch=64)
    old, young = sequence(1, prompt=20, max_tokens=70), sequence(2, prompt=20, max_tokens=70)
    machine.scheduler.add(old)
    hold(old)
    start(machine, young)
    release(old)
    machine.step()
    assert machine.scheduler.running == [old, young]
    machine.run()
    assert (old.preemptions, young.preemptions) == (0, 1)
