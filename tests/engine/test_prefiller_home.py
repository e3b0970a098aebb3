"""How what was computed aside comes home. The worker runs in the test's own process."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from edged.engine import prefiller
from edged.engine.aside import BLOCK, Aside
from edged.engine.batch import Batch
from edged.engine.context import Context
from edged.engine.protocol import Hold, Release, Report, Step
from edged.engine.scheduler import Slice
from edged.engine.sequence import Sequence
from tests.engine.kinds import letters
from tests.engine.rig import PATIENCE_S, Rig, said_alone


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bringing a block home takes as long as the others can wait for."""
    monkeypatch.setattr(prefiller, "_HOME", 1e-9)
    monkeypatch.setattr(prefiller, "_HOME_S", 1e-9)


def computed(rig: Rig) -> Sequence:
    """A prompt that was computed aside beside one that generates, and of which nothing has come back."""
    long = rig.both(progress=True)
    rig.prefiller.tend()  # hands over what was computed before
    deadline = time.monotonic() + PATIENCE_S
    while not rig.aside.is_over:
        time.sleep(0.001)
        assert time.monotonic() < deadline
    return long


@pytest.mark.usefixtures("slow")
def test_it_gets_on_and_no_cell_comes_back_before_it_is_over(rig: Rig) -> None:
    """Every step of those who generate would pass over it."""
    long = computed(rig)
    assert (long.computed, rig.aside.computed, long.is_aside) == (102, 602, True)
    rig.turn()
    assert long.computed == 102 + BLOCK
    assert rig.progress[2][-1] == 602, "it has been computed, wherever"
    rig.until_over()
    assert rig.progress[2].count(602) == 1


def test_blocks_end_where_attention_ends_a_tile(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 cells. One that begins in the middle of a tile passes over one more."""
    ends, step = list[int](), Aside._step

    def noted(aside: Aside, context: Context, batch: Batch) -> None:
        step(aside, context, batch)
        ends.append(aside.computed)

    monkeypatch.setattr(Aside, "_step", noted)
    computed(rig)
    assert ends == [BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK, 602]


@pytest.mark.usefixtures("slow")
def test_its_first_token_does_not_wait_until_all_is_home_and_the_next_one_does(rig: Rig) -> None:
    long = computed(rig)
    rig.turn()
    assert (len(rig.said[2]), long.timing.first_token is not None) == (1, True)
    while long.is_aside:
        rig.turn()
        assert len(rig.said[2]) <= 1 + (not long.is_aside)
    rig.turn()
    assert len(rig.said[2]) > 1


def test_its_first_text_leaves_before_the_next_step(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is what others wait for; it need not."""
    long = computed(rig)
    steps, told = list[int](), list[int]()
    step, send = rig.worker._step, rig.worker._channel.send

    def count(slices: list[Slice]) -> None:
        steps.append(len(slices))
        step(slices)

    def hear(message: Report) -> None:
        if isinstance(message, Step) and any(uid == 2 for uid, _, _ in message.deltas):
            told.append(len(steps))
        send(message)

    monkeypatch.setattr(rig.worker, "_step", count)
    monkeypatch.setattr(rig.worker._channel, "send", hear)
    rig.run_until(lambda: len(long.tokens) > long.prompt_tokens + 2)
    assert told[0] == 0


@pytest.mark.usefixtures("slow")
def test_one_that_wants_a_single_token_leaves_all_its_cells_to_the_prefix_cache(rig: Rig) -> None:
    long = rig.both(max_tokens=1)
    rig.until_over()
    rig.until_said(2, 1)
    assert long.slot == -1, "it has ended"
    again = rig.ask(4, letters(600, 2))
    assert again.cached_tokens == 601, "all that can be: the last one brings the logits"


@pytest.mark.usefixtures("slow")
def test_one_that_is_held_when_it_is_over_comes_home_and_begins_its_answer_when_it_is_released(rig: Rig) -> None:
    long = computed(rig)
    rig.worker._obey(Hold(2))
    rig.until_over()
    assert (long.computed, long.pending, rig.said[2]) == (601, 1, [])
    rig.worker._obey(Release(2))
    rig.turn()
    assert len(rig.said[2]) == 1


@pytest.mark.usefixtures("slow")
def test_one_that_makes_way_after_its_first_token_goes_on_with_the_second(rig: Rig, plain: Path) -> None:
    long = computed(rig)
    rig.turn()
    rig.worker._scheduler.preempt()
    assert (long.is_aside, len(rig.said[2])) == (False, 1)
    assert rig.until_said(2, 16) == said_alone(plain, letters(600, 2), 16)


@pytest.mark.usefixtures("slow")
def test_what_takes_long_to_bring_home_comes_in_several_turns_with_all_threads(rig: Rig) -> None:
    long = computed(rig)
    seen, said = [long.computed], len(rig.said[1])
    while long.is_aside:
        rig.turn()
        assert rig.threads() == 2
        seen.append(long.computed)
    # and then, but not in the turn in which others have waited for these, what follows
    assert [after - before for before, after in itertools.pairwise(seen)] == [*[BLOCK] * 3, 602 - 102 - 3 * BLOCK, 1]
    assert (long.pending, len(rig.said[1]) - said) == (1, 5)
    assert rig.notes() == []


@pytest.mark.usefixtures("slow")
def test_who_has_nothing_else_to_do_brings_all_home(rig: Rig) -> None:
    long = computed(rig)
    rig.cancel(1)
    rig.run_until(lambda: len(long.tokens) > long.prompt_tokens)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("end", ["cancelled", "made way"])
def test_one_that_has_lost_its_place_on_the_way_home_leaves_no_cells(rig: Rig, end: str) -> None:
    long = computed(rig)
    rig.turn()
    assert long.is_aside
    if end == "cancelled":
        rig.cancel(2)
    else:
        rig.worker._scheduler.preempt()
    rig.prefiller.tend()
    assert rig.prefiller._aside is None
    assert (long.slot, long.computed) == (-1, 0)


def test_where_the_others_have_ended_it_goes_on_at_once(rig: Rig) -> None:
    long = computed(rig)
    rig.cancel(1)
    rig.turn()
    assert (rig.prefiller._aside, long.is_aside, len(rig.said[2])) == (None, False, 2)


def test_where_the_others_are_held_when_it_is_back_it_goes_on(rig: Rig) -> None:
    long = computed(rig)
    rig.prefiller.tend()
    assert (rig.prefiller._aside, long.is_aside) == (None, True)
    rig.worker._obey(Hold(1))
    assert rig.worker._scheduler.plan() == []
    assert rig.worker._scheduler.idle
    rig.run_until(lambda: len(long.tokens) > long.prompt_tokens + 1)
