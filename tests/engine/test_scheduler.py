"""Who is in the next step: everyone who decodes, prefill within the target, nobody for ever without a turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.simulated import Machine, sequence

TARGET_S = 0.1


def test_with_nothing_to_do_the_plan_is_empty() -> None:
    scheduler = Machine().scheduler
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


def test_half_of_a_step_is_the_first_ones_and_half_is_for_whoever_has_least_left() -> None:
    machine = Machine(cells=1000, slots=3, batch=60)
    for uid, prompt in enumerate([100, 80, 20]):
        machine.scheduler.add(sequence(uid, prompt=prompt, max_tokens=1))
    step = machine.step()
    assert step is not None
    assert step.prefilled == {0: 30, 2: 20, 1: 10}


def test_a_short_prompt_is_not_stuck_behind_a_long_one() -> None:
    machine = Machine(cells=10_000, slots=2, batch=64)
    machine.scheduler.add(sequence(1, prompt=5000, max_tokens=1))
    machine.step()
    machine.scheduler.add(sequence(2, prompt=30, max_tokens=1))
    machine.step()
    assert machine.finished.keys() == {2}


def test_a_long_prompt_goes_on_while_short_ones_keep_coming() -> None:
    machine = Machine(cells=10_000, slots=3, batch=64)
    machine.scheduler.add(sequence(1, prompt=2000, max_tokens=1))
    for uid in range(2, 100):
        machine.scheduler.add(sequence(uid, prompt=30, max_tokens=1))
        machine.step()
        if 1 in machine.finished:
            break
    assert uid <= 2 + 2000 // 32 + 1, "half of each step is the long one's"


@given(st.lists(st.integers(2, 60), min_size=1, max_size=8), st.integers(8, 64))
def test_prompts_fill_the_step_and_the_first_has_its_half(prompts: list[int], batch: int) -> None:
    machine = Machine(cells=10_000, slots=8, batch=batch)
    for uid, prompt in enumerate(prompts):
        machine.scheduler.add(sequence(uid, prompt=prompt, max_tokens=1))
    step = machine.step()
    assert step is not None
    assert sum(step.prefilled.values()) == min(batch, sum(prompts))
    assert step.prefilled[0] >= min(prompts[0], batch / 2)


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


def running(machine: Machine, *prompts: int) -> list[int]:
    """Those that run when requests with prompts of so many tokens have come; numbered from 1."""
    for uid, prompt in enumerate(prompts, 1):
        machine.scheduler.add(sequence(uid, prompt=prompt, max_tokens=5))
        machine.step()
    return [one.uid for one in machine.scheduler.running]


def test_long_prompts_leave_an_eighth_for_short_ones() -> None:
    machine = Machine(cells=400, slots=4, batch=512)
    assert running(machine, 160, 160, 10) == [1, 3]
    machine.run()
    assert machine.finished.keys() == {1, 2, 3}


@pytest.mark.parametrize(("prompt", "uids"), [(56, [1, 2]), (57, [1])])
def test_short_prompts_may_fill_the_cache(prompt: int, uids: list[int]) -> None:
    """Not more than an eighth of the cells is short."""
    assert running(Machine(cells=450, slots=4, batch=512), 329, prompt) == uids


@pytest.mark.parametrize(("cells", "uids"), [(438, [1]), (439, [1, 2])])
def test_a_long_prompt_fits_where_an_eighth_is_left(cells: int, uids: list[int]) -> None:
    """160 and its first token, 160, a reserve of 32 for each, and 54."""
    assert running(Machine(cells=cells, slots=4, batch=512), 160, 160) == uids


def test_where_no_slot_would_be_left_for_a_short_one_no_room_is() -> None:
    assert running(Machine(cells=400, slots=2, batch=512), 160, 160) == [1, 2]


def test_a_prompt_that_leaves_nothing_for_others_runs_alone() -> None:
    assert running(Machine(cells=400, slots=4, batch=512), 390) == [1]


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
    assert machine.scheduler.preempt() is False
    assert machine.kv.used == 4


def test_the_cells_of_a_preempted_sequence_are_free() -> None:
    machine = Machine(cells=1000)
    for uid in (1, 2):
        machine.scheduler.add(sequence(uid, prompt=4))
    machine.step()
    assert machine.scheduler.preempt()
    assert machine.kv.used == 4


def test_a_sequence_is_found_and_removed_wherever_it_is() -> None:
    machine = Machine(cells=1000, slots=1)
    running, waiting = sequence(1, prompt=4), sequence(2, prompt=4)
    for one in (running, waiting):
        machine.scheduler.add(one)
    machine.step()
    assert machine.scheduler.find(1) is running
    assert machine.scheduler.find(2) is waiting
    assert machine.scheduler.find(3) is None
    machine.scheduler.remove(waiting)
    machine.scheduler.remove(running)
    assert machine.kv.used == 0
    assert machine.scheduler.find(1) is machine.scheduler.find(2) is None
    assert machine.step() is None
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
        machine.answers[uid] = 50_000
        machine.scheduler.add(sequence(uid, prompt=2, max_tokens=50_000))
    for _ in range(5):
        machine.step()
    machine.scheduler.add(sequence(99, prompt=prompt, max_tokens=2))
    seconds = []
    while (step := machine.step()) is not None and 99 not in step.decoded and 99 not in machine.finished:
        assert len(step.decoded) == decoding
        if step.prefilled:
            seconds.append((step.seconds, step.prefilled[99]))
    assert prompt - 1 <= sum(count for _, count in seconds) <= prompt
    return [one for one, _ in seconds]


@pytest.mark.parametrize("prefill_s", [0.0005, 0.002, 0.004])
@pytest.mark.parametrize("decode_s", [0.005, 0.02, 0.08])
@pytest.mark.parametrize("decoding", [1, 3, 7])
def test_prefill_keeps_the_gap_small_and_makes_use_of_it(decoding: int, decode_s: float, prefill_s: float) -> None:
    machine = Machine(
        cells=200_000,
        slots=8,
        batch=512,
        itl_target_s=TARGET_S,
        cost=lambda _decoding, prefill: decode_s + prefill_s * prefill,
    )
    allowed = max(TARGET_S, 2.0 * decode_s)
    seconds = crowd(machine, decoding, prompt=round(8 / prefill_s))  # some hundred steps
    settled = seconds[len(seconds) // 2 : -1]
    assert max(settled) <= allowed + prefill_s
    assert min(settled) > 0.9 * allowed


def test_a_prompt_is_not_charged_for_decoding_that_gets_dearer_with_its_cells() -> None:
    """It would be given fewer tokens, the difference would be charged to these, and so on down to one in a step."""
    machine = Machine(cells=10_000, slots=8, batch=512, itl_target_s=TARGET_S)
    machine.cost = lambda decoding, prefill: bool(decoding) * 0.04 + 0.000_03 * machine.kv.used + 0.005 * prefill
    seconds = crowd(machine, decoding=4, prompt=1500)
    assert len(seconds) < 1500 / 5
    assert max(seconds) < 2.5 * (0.04 + 0.000_03 * 1600)


def test_prefill_goes_on_a_little_where_decoding_alone_takes_too_long() -> None:
    machine = Machine(
        cells=10_000, slots=8, batch=512, itl_target_s=TARGET_S, cost=lambda _, prefill: 2 * TARGET_S + 0.01 * prefill
    )
    seconds = crowd(machine, decoding=2, prompt=160)
    assert machine.finished[99]
    assert max(seconds) <= 2.0 * 2 * TARGET_S + 0.01


def test_a_step_of_prefill_alone_lasts_no_longer_than_it_should() -> None:
    machine = Machine(cells=10_000, batch=512, ubatch=64, cost=lambda _, prefill: 0.001 * prefill)
    machine.scheduler.add(sequence(1, prompt=1000, max_tokens=1))
    steps = machine.run()
    assert [sum(step.prefilled.values()) for step in steps] == [64, *[192] * 4, 168]


def test_a_slow_machine_prefills_a_physical_batch_in_a_step() -> None:
    machine = Machine(cells=10_000, batch=512, ubatch=64, cost=lambda _, prefill: float(prefill))
    machine.scheduler.add(sequence(1, prompt=200, max_tokens=1))
    assert [sum(step.prefilled.values()) for step in machine.run()] == [64, 64, 64, 8]


def test_what_an_aborted_step_computed_is_taken_back() -> None:
    machine = Machine(cells=1000)
    one = sequence(1, prompt=40, max_tokens=3)
    machine.scheduler.add(one)
    machine.step()
    slices = machine.scheduler.plan()
    machine.kv.of[one.slot][16] = machine.kv.of[one.slot][0]  # the first of the slice's tokens
    machine.scheduler.undo(slices)
    assert (one.computed, machine.kv.used) == (16, 16)
    machine.run()
    assert machine.finished[1][1].generated == 3


def test_where_cells_can_only_be_dropped_whole_an_aborted_sequence_begins_anew() -> None:
    machine = Machine(cells=1000)
    machine.kv.whole_only = True
    one = sequence(1, prompt=40, max_tokens=3)
    machine.scheduler.add(one)
    machine.step()
    machine.scheduler.undo(machine.scheduler.plan())
    assert (one.computed, machine.kv.used) == (0, 0)
    machine.run()
    assert machine.finished[1][1].generated == 3


# --- the prefix cache ---


def test_who_begins_alike_computes_only_what_is_new() -> None:
    machine = Machine(cells=1000, batch=512, cached=4)
    first = machine.say(1, prompt=list(range(100)), max_tokens=5)
    second = machine.say(2, prompt=[*range(100), *range(500, 520)], max_tokens=5)
    assert (first.cached_tokens, second.cached_tokens) == (0, 100)


def test_a_conversation_goes_on_from_its_last_answer() -> None:
    machine = Machine(cells=1000, batch=512, cached=4)
    first = machine.say(1, prompt=list(range(100)), max_tokens=50)
    assert len(first.tokens) == 150
    second = machine.say(2, prompt=[*first.tokens, *range(700, 710)], max_tokens=5)
    assert second.cached_tokens == 149  # the last token was said, and never computed


def test_others_find_nothing_but_the_operators_words() -> None:
    machine = Machine(cells=1000, batch=512, cached=4)
    prompt = list(range(100))
    assert machine.say(1, prompt=prompt, owner="a", shared=60, max_tokens=2).cached_tokens == 0
    assert machine.say(2, prompt=prompt, owner="b", shared=60, max_tokens=2).cached_tokens == 60
    assert machine.say(3, prompt=prompt, owner="a", shared=60, max_tokens=2).cached_tokens == 99


def test_a_running_sequence_lends_its_prompt_to_its_owners_next() -> None:
    machine = Machine(cells=1000, batch=512, cached=4)
    machine.scheduler.add(sequence(1, prompt=list(range(100)), max_tokens=50))
    machine.step()
    second = sequence(2, prompt=[*range(100), 7], max_tokens=50)
    machine.scheduler.add(second)
    machine.step()
    assert second.cached_tokens == 100
    assert machine.kv.used < 2 * 100


def test_cached_prefixes_go_before_anyone_is_preempted() -> None:
    machine = Machine(cells=200, batch=64, cached=4)
    machine.say(1, prompt=list(range(100)), max_tokens=5)
    assert machine.kv.used == 104
    others = [sequence(uid, prompt=40, max_tokens=50) for uid in (2, 3)]
    for one in others:
        machine.scheduler.add(one)
    machine.run()
    assert [one.preemptions for one in others] == [0, 0]


def test_an_admission_counts_what_it_will_share() -> None:
    machine = Machine(cells=500, batch=512, cached=4)
    machine.say(1, prompt=list(range(300)), max_tokens=2)
    for uid in (2, 3, 4):
        machine.scheduler.add(sequence(uid, prompt=[*range(300), uid], max_tokens=20))
    machine.step()
    assert len(machine.scheduler.running) == 3


def test_an_exact_request_takes_only_what_it_would_have_computed_the_same_way() -> None:
    machine = Machine(cells=5000, batch=512, ubatch=64, cached=4, cost=lambda _d, prefill: 0.0001 * prefill)
    prompt = list(range(150))
    machine.say(1, prompt=prompt, max_tokens=40)
    assert machine.say(2, prompt=[*prompt, *range(900, 960)], exact=True, max_tokens=2).cached_tokens == 128
    assert machine.say(3, prompt=[*prompt, *range(900, 960)], max_tokens=2).cached_tokens == 209


def test_what_others_left_in_the_cache_does_not_move_an_exact_request_to_other_cells() -> None:
    machine = Machine(cells=5000, batch=512, ubatch=64, cached=4, cost=lambda _d, prefill: 0.0001 * prefill)
    crowd = [sequence(uid, prompt=100 + uid, max_tokens=20) for uid in range(1, 5)]
    for one in crowd:
        machine.scheduler.add(one)
    machine.run()
    assert machine.cache.cells > 0
    machine.say(5, prompt=crowd[0].tokens, exact=True, max_tokens=20)
    assert [cell.index for cell in machine.kv.of[machine.slots].values()] == list(range(machine.kv.used))
    assert machine.finished[5][1].is_alone is False


def test_an_exact_request_that_is_not_alone_takes_what_there_is() -> None:
    machine = Machine(cells=5000, batch=512, ubatch=64, cached=4)
    machine.say(1, prompt=list(range(150)), max_tokens=2)
    machine.scheduler.add(sequence(2, prompt=10))
    machine.step()
    machine.scheduler.add(found := sequence(3, prompt=[*range(150), 900], exact=True, max_tokens=2))
    machine.step()
    assert found.cached_tokens == 150


def test_what_a_crowd_leaves_at_the_far_end_of_the_cache_goes() -> None:
    """A step passes over all cells up to the last one in use, so that one far leaf is as dear as a full cache."""
    machine = Machine(cells=10_000, slots=8, batch=512, cached=20)
    for uid in range(8):
        machine.scheduler.add(sequence(uid, prompt=120, max_tokens=5))
    machine.run()
    machine.say(50, prompt=100, max_tokens=5)
    assert machine.kv.used <= 512
    lone = machine.say(51, prompt=100, max_tokens=5)
    assert machine.say(52, prompt=lone.tokens[:100], max_tokens=5).cached_tokens == 99
