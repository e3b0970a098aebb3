"""Which prompt is computed aside, in another context, and how what was computed there comes back."""

from __future__ import annotations

from edged.engine.scheduler import Slice
from edged.engine.sequence import Sequence
from tests.engine.simulated import Machine, sequence


def streaming(*prompts: int, itl_target_s: float = 0.1, cells: int = 10_000) -> tuple[Machine, list[Sequence]]:
    """One that decodes, and others that came in that order with so many tokens of prompt. A token costs 2 ms."""
    machine = Machine(
        cells=cells,
        slots=8,
        batch=512,
        ubatch=64,
        cached=8,
        itl_target_s=itl_target_s,
        cost=lambda decoding, prefill: 0.01 * (decoding > 0) + 0.002 * prefill,
    )
    machine.scheduler.add(sequence(100, prompt=20))
    machine.step()
    machine.step()
    late = [sequence(uid, prompt=prompt) for uid, prompt in enumerate(prompts)]
    for one in late:
        machine.scheduler.add(one)
    machine.step()
    return machine, late


def test_a_long_prompt_is_worth_it_while_others_decode() -> None:
    machine, [long] = streaming(1500)
    assert machine.scheduler.worth_aside() == [long]


def test_it_is_not_where_nobody_decodes() -> None:
    machine = Machine(cells=10_000, batch=512, ubatch=64)
    machine.scheduler.add(sequence(1, prompt=1500))
    machine.scheduler.add(sequence(2, prompt=1500))
    machine.step()
    assert machine.scheduler.worth_aside() == []


def test_it_is_not_where_the_one_who_decodes_is_held() -> None:
    machine, _ = streaming(1500)
    machine.scheduler.running[0].timing.hold(0.0)
    assert machine.scheduler.worth_aside() == []


def test_a_short_prompt_is_not_worth_it() -> None:
    machine, [short] = streaming(170)  # of which the first step has taken about 45 along
    assert 64 < short.pending <= 128
    assert machine.scheduler.worth_aside() == []


def test_it_is_not_where_the_steps_can_take_whole_physical_batches_along() -> None:
    assert streaming(1500, itl_target_s=0.13)[0].scheduler.worth_aside() != []  # 60 tokens
    assert streaming(1500, itl_target_s=0.15)[0].scheduler.worth_aside() == []  # 70


def test_all_long_ones_are_told_as_they_came() -> None:
    machine, [_short, first, second] = streaming(30, 700, 500)
    assert machine.scheduler.worth_aside() == [first, second]


def test_one_that_is_held_or_could_not_be_computed_aside_is_passed_over() -> None:
    machine, [first, second, third] = streaming(700, 600, 500)
    first.timing.hold(0.0)
    second.stays = True
    assert machine.scheduler.worth_aside() == [third]


def test_one_that_will_be_computed_aside_is_in_no_step_until_then() -> None:
    machine, [long, short] = streaming(1500, 150)
    machine.scheduler.has_aside = True
    before = long.computed
    assert [(piece.sequence, piece.count) for piece in machine.scheduler.plan()][1:] == [(short, 45)]
    long.stays = True  # it will not
    machine.step()
    assert long.computed > before


def test_where_nobody_decodes_it_waits_for_nothing() -> None:
    machine = Machine(cells=10_000, batch=512, ubatch=64)
    machine.scheduler.has_aside = True
    machine.scheduler.add(sequence(1, prompt=1500))
    assert [piece.count for piece in machine.scheduler.plan()] == [64]


def test_one_that_is_aside_is_in_no_step_and_short_ones_go_on() -> None:
    machine, [long, other] = streaming(1500, 130)
    long.is_aside = True
    computed = long.computed
    for _ in range(5):
        step = machine.step()
        assert step is not None
        assert 100 in step.decoded
        assert 0 not in step.prefilled
    assert long.computed == computed
    assert other.pending <= 1


def test_other_long_ones_wait_for_their_turn_and_spare_the_streams() -> None:
    machine, [long, other] = streaming(1500, 300)
    long.is_aside, computed = True, other.computed
    assert machine.step() is not None
    assert other.computed == computed
    other.stays = True
    assert machine.step() is not None
    assert other.computed > computed, "unless none will come"


def test_nobody_waits_for_a_turn_where_no_streams_are_to_be_spared() -> None:
    machine, [long, other] = streaming(1500, 300)
    long.is_aside, computed = True, other.computed
    machine.finish(machine.scheduler.running[0], "cancelled")
    assert machine.step() is not None
    assert other.computed > computed


def test_only_those_who_are_aside_leave_nothing_to_do() -> None:
    machine, [long] = streaming(1500)
    long.is_aside = True
    before = machine.scheduler.idle, bool(machine.scheduler.decoding)
    machine.finish(machine.scheduler.running[0], "cancelled")
    assert before == (False, True)
    assert machine.step() is None
    assert (machine.scheduler.idle, machine.scheduler.decoding) == (True, [])
    assert machine.step() is None


def test_what_comes_back_is_counted_and_the_last_token_is_computed_here() -> None:
    machine, [long] = streaming(700)
    long.is_aside = True
    while long.pending > 1:
        before = long.computed
        machine.come_back(long, 64)
        assert long.computed == min(before + 64, 699)
        assert long.reach >= machine.kv.used, "it may lie as far as that"
    long.is_aside = False
    step = machine.step()
    assert step is not None
    assert sorted(step.decoded) == [0, 100]
    assert long.generated == 1


def test_cached_prefixes_make_way_for_what_comes_back() -> None:
    machine = Machine(cells=400, slots=2, batch=512, ubatch=64, cached=4, itl_target_s=0.05)
    machine.say(7, prompt=100, max_tokens=1)
    machine.scheduler.add(sequence(1, prompt=20))
    machine.step()
    machine.scheduler.add(long := sequence(2, prompt=300))
    machine.step()
    long.is_aside = True
    assert machine.cache.cells >= 100
    while long.pending > 1:
        machine.come_back(long, 64)
        assert long.is_aside
    assert machine.cache.cells < 100


def test_the_youngest_makes_way_for_what_comes_back() -> None:
    machine = Machine(cells=400, slots=3, batch=512, ubatch=64, itl_target_s=0.05)
    machine.scheduler.add(sequence(1, prompt=20))
    machine.step()
    machine.scheduler.add(long := sequence(2, prompt=200))
    machine.step()
    long.is_aside = True
    machine.scheduler.add(young := sequence(3, prompt=20))
    for _ in range(120):  # both grow beyond what was foreseen
        machine.step()
    while long.pending > 1:
        machine.come_back(long, 64)
    assert long.is_aside
    assert young.preemptions == 1


def test_one_that_had_to_make_way_itself_is_not_aside_any_more() -> None:
    machine, [long] = streaming(300, cells=450)
    long.is_aside = True
    for _ in range(150):
        machine.step()
    while long.is_aside and long.pending > 1:
        machine.come_back(long, 64)
    assert not long.is_aside
    assert (long.computed, long.preemptions) == (0, 1)
    assert not machine.scheduler.make_way(Slice(long, 64)), "and what comes late is not taken in"


def test_while_one_is_computed_aside_short_ones_pass_those_that_wait_for_its_cells() -> None:
    """And do not have to say how few tokens they want; nor do they end when it is back, and the first one comes."""
    machine, [long, _first] = streaming(1500, 1400, cells=2500)
    long.is_aside = True
    short = sequence(2, prompt=10, max_tokens=512)
    machine.scheduler.add(short)
    machine.step()
    assert [one.uid for one in machine.scheduler.running] == [100, 0, 2]
    machine.finish(long, "cancelled")
    machine.step()
    assert [one.uid for one in machine.scheduler.running] == [100, 1, 2]
    assert short.preemptions == 0


def test_whoever_waits_beside_one_that_is_aside_comes_as_soon_as_another_has_ended() -> None:
    """Not when something is back from there."""
    machine, [long, _first] = streaming(1500, 1400, cells=2500)
    long.is_aside = True
    for _ in range(600):
        machine.step()
    short = sequence(2, prompt=300)
    machine.scheduler.add(short)
    machine.step()
    assert [one.uid for one in machine.scheduler.running] == [100, 0]
    machine.finish(machine.scheduler.running[0], "stop")
    assert not machine.scheduler.idle
    machine.step()
    assert [one.uid for one in machine.scheduler.running] == [0, 2]
