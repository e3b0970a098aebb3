"""How what was computed aside comes home. The worker runs in the test's own process."""

from __future__ import annotations

import itertools
import time

import pytest

from edged.engine import prefiller
from edged.engine.aside import BLOCK
from edged.engine.protocol import Hold
from edged.engine.sequence import Sequence
from tests.engine.rig import PATIENCE_S, Rig


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
    assert (long.computed, rig.aside.computed, long.is_aside) == (102, 601, True)
    rig.turn()
    assert long.computed == 102 + BLOCK
    assert rig.progress[2][-1] == 601, "it has been computed, wherever"
    rig.until_over()
    assert rig.progress[2][-1] == 602


@pytest.mark.usefixtures("slow")
def test_what_takes_long_to_bring_home_comes_in_several_turns_with_all_threads(rig: Rig) -> None:
    long = computed(rig)
    seen, said = [long.computed], len(rig.said[1])
    while long.is_aside:
        rig.turn()
        assert rig.threads() == 2
        seen.append(long.computed)
    # and then, but not in the turn in which others have waited for these, the last token
    assert [after - before for before, after in itertools.pairwise(seen)] == [*[BLOCK] * 3, 601 - 102 - 3 * BLOCK, 1]
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
    assert (rig.prefiller._aside, long.is_aside, len(rig.said[2])) == (None, False, 1)


def test_where_the_others_are_held_when_it_is_back_it_goes_on(rig: Rig) -> None:
    long = computed(rig)
    rig.prefiller.tend()
    assert (rig.prefiller._aside, long.is_aside) == (None, True)
    rig.worker._obey(Hold(1))
    assert rig.worker._scheduler.plan() == []
    assert rig.worker._scheduler.idle
    rig.run_until(lambda: len(long.tokens) > long.prompt_tokens)
