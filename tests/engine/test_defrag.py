"""What one sequence has in the KV cache is kept together. llama.cpp's own map of its cells tells."""

from __future__ import annotations

import ctypes
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp as llama
import pytest

from edged.engine import defrag
from edged.engine.defrag import RUN, Defragmenter
from edged.engine.protocol import Hold
from edged.engine.sequence import Sequence
from tests.engine.kinds import letters
from tests.engine.rig import Rig, said_alone
from tests.engine.simulated import Machine, sequence


class Cells:
    """Cells that are moved in so many seconds each time, where there is room.

    Attributes:
        moved: slot, start and end.
    """

    def __init__(self, seconds: float = 0.0, *, has_room: bool = True) -> None:
        self.seconds = seconds
        self.has_room = has_room
        self.now = 0.0
        self.moved: list[tuple[int, int, int]] = []

    def move(self, slot: int, start: int, end: int) -> bool:
        self.now += self.seconds
        self.moved.append((slot, start, end))
        return self.has_room

    def clock(self) -> float:
        return self.now


class Residents:
    """Sequences that have generated so many tokens each behind a prompt of 10."""

    def __init__(self, *generated: int, free: int = 1000) -> None:
        self.decoding = [sequence(slot, prompt=10) for slot in range(len(generated))]
        self.free = free
        for slot, (one, count) in enumerate(zip(self.decoding, generated, strict=True)):
            one.slot, one.computed, one.together = slot, 10 + count, 10

    def has_free(self, cells: int) -> bool:
        return cells <= self.free

    def moved(self, one: Sequence, count: int) -> None:
        one.together += count


def moves(cells: Cells, residents: Residents, *came: int) -> list[tuple[int, int, int]]:
    """What is moved when so many tokens come before each turn."""
    defragmenter = Defragmenter(cells, residents, clock=cells.clock)
    for tokens in came:
        defragmenter.note(tokens)
        defragmenter.tend()
    return cells.moved


def test_the_one_with_most_of_them_apart_comes_first() -> None:
    assert moves(Cells(), Residents(RUN, RUN + 2, RUN + 1), RUN) == [(1, 10, 10 + RUN)]


def test_as_much_is_moved_as_has_come() -> None:
    """Else it would go where the last one was, between the others'."""
    residents = Residents(5 * RUN, 5 * RUN)
    assert moves(Cells(), residents, RUN - 1) == []
    assert moves(Cells(), residents, RUN - 1, 1) == [(0, 10, 10 + RUN)]
    assert len(moves(Cells(), residents, RUN - 1, 2, RUN - 2, 1)) == 2, "what is over counts for the next one"
    assert len(moves(Cells(), residents, 2 * RUN)) == 2


def test_what_came_when_there_was_nothing_to_move_does_not_add_up() -> None:
    residents, cells = Residents(RUN - 1, RUN - 1), Cells()
    defragmenter = Defragmenter(cells, residents, clock=cells.clock)
    for _ in range(10):
        defragmenter.note(RUN)
        defragmenter.tend()
    for one in residents.decoding:
        one.computed += RUN
    defragmenter.tend()
    assert len(cells.moved) == 1


@pytest.mark.parametrize(
    "residents",
    [Residents(5 * RUN), Residents(RUN - 1, RUN - 1), Residents(RUN, RUN, free=RUN - 1)],
    ids=["one is alone", "too few lie apart", "no room"],
)
def test_nothing_is_moved_where_it_is_not_worth_it(residents: Residents) -> None:
    assert moves(Cells(), residents, RUN, RUN) == []


def test_where_it_cannot_be_done_it_is_tried_once_a_turn() -> None:
    residents = Residents(5 * RUN, 5 * RUN)
    assert len(moves(Cells(has_room=False), residents, 3 * RUN, RUN)) == 2
    assert [one.together for one in residents.decoding] == [10, 10]


def test_no_more_than_a_fiftieth_of_the_time_is_spent_with_it() -> None:
    cells = Cells(0.004)
    defragmenter = Defragmenter(cells, Residents(*[10_000 * RUN] * 2), clock=cells.clock)
    for _ in range(1000):
        cells.now += 0.25
        defragmenter.note(10 * RUN)
        defragmenter.tend()
    assert 0.019 < 0.004 * len(cells.moved) / cells.now < 0.0202
    cells.now += 1000
    before = len(cells.moved)
    defragmenter.note(100 * RUN)
    defragmenter.tend()
    assert len(cells.moved) - before <= 6, "no more is saved up than for a second"


def test_while_cells_are_moved_so_many_more_are_in_use() -> None:
    """The prefix cache keeps what reaches no further than it may."""
    machine = Machine(cells=1000, slots=2)
    one, other = sequence(1, prompt=10), sequence(2, prompt=10)
    machine.scheduler.add(one)
    machine.scheduler.add(other)
    for _ in range(100):
        machine.step()
    used = machine.scheduler._used()
    assert (machine.scheduler.has_free(1000 - used), machine.scheduler.has_free(1001 - used)) == (True, False)
    start = one.scattered.start
    machine.scheduler.moved(one, 32)
    assert (one.scattered.start, one.reach) == (start + 32, used + 32)


@pytest.fixture
def ample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving may take any time: a step of so small a model takes no longer."""
    monkeypatch.setattr(defrag, "_SHARE", 1e9)


@pytest.fixture
def flash(plain: Path) -> Iterator[Rig]:
    """A worker with flash attention."""
    rig = Rig(plain, flash_attention="on", threads=1)
    try:
        yield rig
    finally:
        rig.close()


@contextmanager
def maps(rig: Rig) -> Iterator[list[str]]:
    """llama.cpp's maps of the cells, one for each physical batch: their sequence ids, `M` for several, `.` = free."""
    found = list[str]()

    @llama.llama_log_callback  # type: ignore[untyped-decorator]
    def heard(_level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        if re.fullmatch(r"[\s*.M0-9]+", line := text.decode()) and "  " not in line:
            found.append(re.sub(r"[\s*]", "", line))

    llama.llama_log_set(heard, ctypes.c_void_p(0))
    try:
        yield found
    finally:
        llama.llama_log_set(rig.log._callback, ctypes.c_void_p(0))


def runs(cells: str, slot: int) -> list[int]:
    """Lengths of what lies together of one sequence."""
    return [len(list(group)) for key, group in itertools.groupby(cells) if key == str(slot)]


@pytest.mark.usefixtures("ample")
def test_cells_of_streams_lie_together_and_they_say_the_same(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_KV_CACHE_DEBUG", "3")
    alone = [said_alone(plain, letters(20 + seed, seed), 100) for seed in range(3)]
    rig = Rig(plain, flash_attention="on", threads=1)
    try:
        streams = [rig.ask(seed, letters(20 + seed, seed)) for seed in range(3)]
        with maps(rig) as found:
            assert [rig.until_said(seed, 100) for seed in range(3)] == alone, "later than that, a last digit may decide"
            rig.until_said(0, 300)
        *_, cells = found
        for one in streams:
            apart = sum(length for length in runs(cells, one.slot) if length < RUN // 2)
            assert apart <= 2 * RUN, cells
        assert len(cells.rstrip(".")) <= sum(one.computed for one in streams) + RUN + 8, "and no further than before"
    finally:
        rig.close()


@pytest.mark.usefixtures("ample")
def test_who_takes_the_cells_over_says_the_same(flash: Rig) -> None:
    """They are found in the prefix cache, wherever they lie."""
    first = flash.ask(1, letters(20, 1))
    flash.ask(2, letters(20, 2))
    said = flash.until_said(1, 200)
    assert first.together > 100
    flash.cancel(1)
    again = flash.ask(3, letters(20, 1), generated=said[:150])
    assert again.kept > 150
    assert flash.until_said(3, 50) == said[150:]


@pytest.mark.usefixtures("ample")
def test_what_came_while_it_was_alone_stays_where_it_is(flash: Rig) -> None:
    """It lies together already, and to the last digit as in an empty cache."""
    one = flash.ask(1, letters(20, 1))
    flash.until_said(1, 60)
    alone = one.computed
    flash.ask(2, letters(20, 2))
    assert one.scattered == range(alone, alone + 1)
    flash.until_said(2, 60)
    assert one.together in range(alone + RUN, one.computed, RUN)


@pytest.mark.usefixtures("ample")
def test_the_worker_sees_to_it_between_its_steps(flash: Rig) -> None:
    one = flash.ask(1, letters(20, 1))
    flash.ask(2, letters(20, 2))
    flash.run_until(lambda: one.together >= 22 + 2 * RUN)


def test_without_flash_attention_nothing_is_moved(rig: Rig) -> None:
    """It reads all cells, wherever they lie."""
    one = rig.ask(1, letters(20, 1))
    rig.ask(2, letters(20, 2))
    rig.until_said(1, 100)
    assert (one.together, rig.worker._defragmenter) == (22, None)


@pytest.mark.usefixtures("ample")
def test_one_that_is_held_is_left_where_it_is(flash: Rig) -> None:
    held = flash.ask(1, letters(20, 1))
    flash.ask(2, letters(20, 2))
    flash.until_said(1, RUN - 2)
    flash.worker._obey(Hold(1))
    before = held.together
    flash.until_said(2, 4 * RUN)
    assert held.together == before
