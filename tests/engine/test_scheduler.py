"""Who is in the next step: everyone who decodes, prefill within the target, nobody for ever without a turn."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.engine.scheduler import Costs, Scheduler
from edged.engine.sequence import State
from tests.engine.simulated import Machine, sequence
from tests.wire.strategies import unhurried

TARGET_S = 0.1


def test_with_nothing_to_do_the_plan_is_empty() -> None:
    scheduler = Scheduler(cells=64, slots=2, batch=16, itl_target_s=TARGET_S)
    assert scheduler.idle
    assert scheduler.plan() == []


def test_an_only_prompt_is_prefilled_by_full_batches() -> None:
    machine = Machine(cells=100, batch=16)
    machine.scheduler.add(sequence(1, prompt=40, max_tokens=1))
    assert [step.prefilled for step in machine.run()] == [{1: 16}, {1: 16}, {1: 8}]


def test_the_step_that_completes_a_prompt_brings_its_first_token() -> None:
    machine = Machine()
    one = sequence(1, prompt=16, max_tokens=9)
    machine.scheduler.add(one)
    machine.step()
    assert (one.generated, one.is_decoding) == (1, True)


def test_equal_prompts_get_equal_shares_of_a_step() -> None:
    machine = Machine(cells=1000, slots=4, batch=64)
    for uid in range(4):
        machine.scheduler.add(sequence(uid, prompt=100, max_tokens=1))
    step = machine.step()
    assert step is not None
    assert step.prefilled == dict.fromkeys(range(4), 16)


def test_what_a_short_prompt_does_not_need_goes_to_the_others() -> None:
    machine = Machine(cells=1000, slots=3, batch=60)
    for uid, prompt in enumerate([100, 4, 100]):
        machine.scheduler.add(sequence(uid, prompt=prompt, max_tokens=1))
    step = machine.step()
    assert step is not None
    assert step.prefilled == {1: 4, 0: 28, 2: 28}


@unhurried
@given(st.lists(st.integers(2, 60), min_size=1, max_size=8), st.integers(8, 64))
def test_prompts_fill_the_step_and_each_gets_some_of_it(prompts: list[int], batch: int) -> None:
    machine = Machine(cells=10_000, slots=8, batch=batch)
    for uid, prompt in enumerate(prompts):
        machine.scheduler.add(sequence(uid, prompt=prompt, max_tokens=1))
    step = machine.step()
    assert step is not None
    assert sum(step.prefilled.values()) == min(batch, sum(prompts))
    assert step.prefilled.keys() == set(range(len(prompts)))
    unsated = [count for uid, count in step.prefilled.items() if count < prompts[uid]]
    assert max(unsated, default=0) - min(unsated, default=0) <= 1


def test_sequences_start_in_the_order_they_came() -> None:
    machine = Machine(cells=1000, slots=2)
    for uid, prompt in enumerate([30, 3, 40, 2, 20]):
        machine.scheduler.add(sequence(uid, prompt=prompt, max_tokens=5))
    started: dict[int, None] = {}
    while machine.step() is not None:
        started |= dict.fromkeys(one.uid for one in machine.scheduler.running)
    assert list(started) == [0, 1, 2, 3, 4]


def test_no_more_run_than_there_are_slots() -> None:
    machine = Machine(cells=10_000, slots=3)
    for uid in range(10):
        machine.scheduler.add(sequence(uid, prompt=4, max_tokens=20))
    machine.step()
    assert [one.uid for one in machine.scheduler.running] == [0, 1, 2]
    machine.run()
    assert machine.finished.keys() == set(range(10))


def test_a_prompt_waits_until_the_running_have_room_to_grow() -> None:
    machine = Machine(cells=200, slots=4, batch=200)
    machine.scheduler.add(sequence(1, prompt=100, max_tokens=10))
    machine.scheduler.add(sequence(2, prompt=60, max_tokens=10))
    machine.step()
    assert [one.uid for one in machine.scheduler.running] == [1]
    machine.run()
    assert machine.finished.keys() == {1, 2}
    assert all(one.preemptions == 0 for _, one in machine.finished.values())


def test_a_prompt_that_leaves_no_reserve_runs_when_it_is_alone() -> None:
    machine = Machine(cells=64, batch=64)
    machine.scheduler.add(sequence(1, prompt=63))
    machine.run()
    assert machine.finished[1][1].generated == 2


def test_when_the_cache_is_full_the_youngest_makes_room_and_comes_back_first() -> None:
    machine = Machine(cells=120, slots=4)
    for uid in (1, 2):
        machine.scheduler.add(sequence(uid, prompt=20, max_tokens=70))
    machine.scheduler.add(sequence(3, prompt=60, max_tokens=5))
    machine.run()
    assert [machine.finished[uid][1].preemptions for uid in (1, 2, 3)] == [0, 1, 0]
    assert list(machine.finished) == [1, 2, 3]


def test_preempting_the_only_one_is_refused() -> None:
    machine = Machine()
    machine.scheduler.add(sequence(1, prompt=4))
    machine.step()
    assert machine.scheduler.preempt_youngest() is False
    assert machine.scheduler.take_preempted() == []


def test_a_preempted_slot_is_named_once() -> None:
    machine = Machine(cells=1000)
    for uid in (1, 2):
        machine.scheduler.add(sequence(uid, prompt=4))
    machine.step()
    slot = machine.scheduler.running[-1].slot
    assert machine.scheduler.preempt_youngest()
    assert machine.scheduler.take_preempted() == [slot]
    assert machine.scheduler.take_preempted() == []


def test_a_sequence_is_found_and_removed_wherever_it_is() -> None:
    machine = Machine(cells=1000, slots=1)
    running, waiting = sequence(1, prompt=4), sequence(2, prompt=4)
    for one in (running, waiting):
        machine.scheduler.add(one)
    machine.step()
    assert machine.scheduler.find(1) is running
    assert machine.scheduler.find(2) is waiting
    assert machine.scheduler.find(3) is None
    assert machine.scheduler.remove(waiting) == -1
    assert machine.scheduler.remove(running) == 0
    assert (running.state, waiting.state) == (State.FINISHED, State.FINISHED)
    assert machine.scheduler.find(1) is machine.scheduler.find(2) is None
    assert machine.scheduler.idle


def test_an_answer_ends_when_no_further_token_can_be_computed() -> None:
    machine = Machine(cells=50)
    machine.scheduler.add(sequence(1, prompt=10, max_tokens=10_000))
    machine.run()
    reason, one = machine.finished[1]
    assert reason == "length"
    assert len(one.tokens) == 51  # the last one is said, and needs no cell


def crowd(machine: Machine, decoding: int, prompt: int) -> list[float]:
    """The seconds of each step in which others decode while a long prompt is prefilled, costs having been learnt."""
    for uid in range(1, decoding + 1):
        machine.answers[uid] = 5000
        machine.scheduler.add(sequence(uid, prompt=2, max_tokens=5000))
    for _ in range(5):
        machine.step()
    machine.scheduler.add(sequence(99, prompt=prompt, max_tokens=2))
    seconds = []
    while (step := machine.step()) is not None and 99 in step.prefilled:
        assert len(step.decoded) == decoding
        seconds.append((step.seconds, step.prefilled[99]))
    prefill = [count for _, count in seconds]
    assert sum(prefill) == prompt
    assert all(after >= before for before, after in pairwise(prefill[:-1])), (
        "it only ever gets to know the costs better"
    )
    return [one for one, _ in seconds]


@pytest.mark.parametrize("prefill_s", [0.0005, 0.002, 0.004])
@pytest.mark.parametrize("decode_s", [0.005, 0.02])
@pytest.mark.parametrize("decoding", [1, 3, 7])
def test_prefill_keeps_the_step_under_the_target_gap_and_makes_use_of_it(
    decoding: int, decode_s: float, prefill_s: float
) -> None:
    machine = Machine(
        cells=100_000,
        slots=8,
        batch=512,
        itl_target_s=TARGET_S,
        cost=lambda _decoding, prefill: decode_s + prefill_s * prefill,
    )
    seconds = crowd(machine, decoding, prompt=20_000)
    assert max(seconds) <= TARGET_S
    assert min(seconds[len(seconds) // 2 : -1]) > 0.9 * TARGET_S  # by then it knows what prefill costs


def test_prefill_goes_on_a_little_where_decoding_alone_takes_too_long() -> None:
    machine = Machine(
        cells=10_000, slots=8, batch=512, itl_target_s=TARGET_S, cost=lambda _, prefill: 2 * TARGET_S + 0.01 * prefill
    )
    crowd(machine, decoding=2, prompt=160)
    assert machine.finished[99]


def test_without_anyone_decoding_the_target_does_not_hold_prefill_up() -> None:
    machine = Machine(cells=10_000, batch=512, itl_target_s=TARGET_S, cost=lambda _, prefill: float(prefill))
    machine.scheduler.add(sequence(1, prompt=2048, max_tokens=1))
    assert [sum(step.prefilled.values()) for step in machine.run()] == [512] * 4


def test_costs_are_running_averages_of_what_steps_took() -> None:
    costs = Costs()
    costs.learn(decoding=2, prefill=0, seconds=0.010)
    assert costs.decode_s == 0.010
    costs.learn(decoding=0, prefill=100, seconds=0.1)
    assert costs.prefill_s == pytest.approx(0.001)
    costs.learn(decoding=2, prefill=10, seconds=0.030)
    assert costs.prefill_s == pytest.approx(0.001 + 0.2 * (0.002 - 0.001))
    costs.learn(decoding=2, prefill=0, seconds=0.020)
    assert costs.decode_s == pytest.approx(0.012)


def test_a_step_with_prefill_that_was_quicker_than_decoding_alone_teaches_nothing() -> None:
    costs = Costs(decode_s=0.010, prefill_s=0.001)
    costs.learn(decoding=2, prefill=10, seconds=0.005)
    assert costs == Costs(decode_s=0.010, prefill_s=0.001)
