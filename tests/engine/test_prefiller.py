"""What comes of a prompt that is computed aside, or cannot be. The worker runs in the test's own process."""

from __future__ import annotations

import ctypes
import itertools
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp as llama
import pytest

from edged.engine import memory
from edged.engine.aside import BLOCK, Aside
from edged.engine.context import Context
from edged.engine.protocol import Hold, Release
from edged.engine.sequence import Sequence
from tests.engine.kinds import letters
from tests.engine.rig import PATIENCE_S, Rig, said_alone

TOKENS = 16


def test_threads_are_shared_while_something_is_computed_aside(rig: Rig) -> None:
    assert rig.threads() == 2
    long = rig.both()
    assert rig.threads() == 1
    rig.until_over()
    assert rig.threads() == 2
    assert (long.pending, long.is_aside, rig.notes()) == (1, False, [])


def test_no_step_takes_any_of_it_along_before(rig: Rig) -> None:
    """That would make those who generate wait twice as long, for a few tokens."""
    rig.ask(1, letters(20, 1))
    long = rig.ask(2, letters(600, 2))
    assert (long.is_aside, long.computed) == (False, 0)
    rig.turn()
    assert long.is_aside


def test_without_memory_for_its_cells_it_is_computed_with_the_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return False

    monkeypatch.setattr(memory, "fits", fits)
    rig.ask(1, letters(20, 1))
    long = rig.ask(2, letters(600, 2))
    before = long.computed
    for _ in range(20):
        rig.turn()
    assert (long.is_aside, rig.prefiller._aside, long.computed > before) == (False, None, True)
    # Two layers, keys and values of 64 numbers, 16 bits each; 602 tokens.
    [size] = asked
    assert size > 602 * 2 * 2 * 64 * 2


@pytest.mark.parametrize("words", ["no memory for this", ""])
@pytest.mark.parametrize(
    ("method", "is_others"),
    [("take", False), ("put", True), ("decode", True), ("take", True), ("put", False)],
    ids=["handed over", "received", "computed", "taken", "brought home"],
)
def test_what_goes_wrong_aside_is_told_and_the_prompt_goes_on_with_the_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, method: str, is_others: bool, words: str
) -> None:
    """In the other context, or that of all. Python's own MemoryError has no words."""
    real = getattr(Context, method)

    def fail(self: Context, *args: object) -> object:
        if (self is rig.model.context) == is_others:
            return real(self, *args)
        if method == "put":
            return False
        raise MemoryError(words)

    with monkeypatch.context() as patch:
        patch.setattr(Context, method, fail)
        long = rig.both()
        rig.until_over()
    [note] = rig.notes()
    assert (words if method != "put" and words else f"no {'room' if method == 'put' else 'memory'}") in note.text
    assert not long.is_aside
    computed = long.computed
    for _ in range(5):
        rig.turn()
    assert rig.prefiller._aside is None, "not a second time"
    assert long.computed > computed


@pytest.mark.parametrize("what", ["thread", "descriptor", "anything"])
def test_what_there_is_none_of_is_told_and_the_prompt_is_computed_with_the_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def none(*_anything: object, **_named: object) -> None:
        raise OSError(24, "none left") if what == "descriptor" else RuntimeError("none left")

    rig.ask(1, letters(20, 1))
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patch:
        if what == "thread":
            patch.setattr(threading.Thread, "start", none)
        elif what == "descriptor":
            patch.setattr(os, "eventfd", none)
        else:
            patch.setattr(rig.model, "open_aside", none)
        long = rig.ask(2, letters(600, 2))
        rig.turn()
        rig.until_over()
    [note] = rig.notes()
    assert (note.level, "none left" in note.text) == ("warning", True)
    for _ in range(5):
        rig.turn()
    assert (long.is_aside, long.computed > 0, rig.threads()) == (False, True, 2)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


@pytest.fixture
def endless(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second block that is computed aside takes until no further one is wanted; a stop aborts it."""
    real, blocks = Context.decode, list[int]()

    def decode(self: Context, batch: llama.llama_batch) -> None:
        if threading.current_thread().name == "aside":
            blocks.append(batch.n_tokens)
            while len(blocks) == 2 and not rig.aside._is_ending:
                time.sleep(0.001)
        real(self, batch)

    monkeypatch.setattr(Context, "decode", decode)


@pytest.mark.usefixtures("endless")
def test_a_cancel_acts_inside_of_a_block_and_is_no_trouble(rig: Rig) -> None:
    rig.both()
    rig.turn()
    rig.cancel(2)
    rig.until_over()
    assert rig.notes() == []
    assert len(rig.said[1]) > 1


def begun(rig: Rig) -> Sequence:
    """A prompt of which a block was computed aside."""
    long = rig.both(progress=True)
    rig.prefiller.tend()  # hands over what was computed before
    deadline = time.monotonic() + PATIENCE_S
    while rig.aside.computed == 102:
        time.sleep(0.001)
        assert time.monotonic() < deadline
    return long


@pytest.mark.usefixtures("endless")
def test_when_the_others_have_ended_it_goes_on_in_whole_steps(rig: Rig, plain: Path) -> None:
    begun(rig)
    rig.cancel(1)
    rig.until_over()
    assert rig.prefiller._aside is None
    said = rig.until_said(2, TOKENS)
    steps = [after - before for before, after in itertools.pairwise(rig.progress[2])]
    assert max(steps) > BLOCK, "more at once than comes from aside"
    assert said == said_alone(plain, letters(600, 2), TOKENS)


@pytest.mark.usefixtures("endless")
def test_it_is_held_in_the_middle_and_goes_on_with_what_it_has(rig: Rig, plain: Path) -> None:
    long = begun(rig)
    rig.worker._obey(Hold(2))
    rig.until_over()
    for _ in range(5):
        rig.turn()
    assert (long.computed, rig.prefiller._aside) == (BLOCK, None), "nothing is computed for one that is held"
    rig.worker._obey(Release(2))
    said = rig.until_said(2, TOKENS)
    assert rig.progress[2] == sorted(set(rig.progress[2])), "nothing is computed twice"
    assert said == said_alone(plain, letters(600, 2), TOKENS)


def test_what_llama_cpp_logs_in_the_other_thread_is_not_handed_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """To be aborted is an error for it; and the sink writes to a socket, which one thread may do."""
    real = Context.take

    def take(self: Context, *args: int) -> object:
        rig.log._line(4, threading.current_thread().name.encode(), ctypes.c_void_p(0))
        return real(self, *args)

    monkeypatch.setattr(Context, "take", take)
    rig.both()
    rig.until_over()
    assert set(rig.logged) == {threading.current_thread().name}


@pytest.fixture
def turns(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[int, int]]]:
    """Who has its turn aside, until nobody wants one, and how many blocks: (uid, blocks)."""
    real, listen, asides, heard = Context.decode, Aside.listen, list[Aside](), list[int]()

    def decode(self: Context, batch: llama.llama_batch) -> None:
        """A block is computed when the one before was heard of, as if it took long."""
        if threading.current_thread().name == "aside":
            while heard[-1] < asides[-1].blocks:
                time.sleep(0.001)
        real(self, batch)

    def hear(self: Aside) -> bool:
        is_over = listen(self)
        heard[-1] = self.blocks
        return is_over

    def start(self: Aside, *args: Any, **more: Any) -> None:
        asides.append(self)
        heard.append(0)
        init(self, *args, **more)

    def run() -> list[tuple[int, int]]:
        deadline = time.monotonic() + PATIENCE_S
        while rig.worker._scheduler.worth_aside() or rig.prefiller._aside is not None:
            if rig.prefiller._aside is not None and not rig.aside.wanted(1):
                select.select([rig.aside.event], [], [], PATIENCE_S)  # else others get on while a block is computed
            rig.turn()
            assert time.monotonic() < deadline
        return [(aside.sequence.uid, aside.blocks) for aside in asides]

    init = Aside.__init__
    monkeypatch.setattr(Aside, "__init__", start)
    monkeypatch.setattr(Aside, "listen", hear)
    monkeypatch.setattr(Context, "decode", decode)
    return run


def test_several_take_turns_the_first_that_came_and_the_shortest(
    rig: Rig, turns: Callable[[], list[tuple[int, int]]]
) -> None:
    """A turn is of two blocks and what is computed while it ends."""
    rig.ask(1, letters(20, 1))
    for uid, length in ((2, 1100), (3, 180), (4, 150)):
        rig.ask(uid, letters(length, uid))
    told = turns()
    assert [uid for uid, _ in told[:4]] == [2, 4, 2, 3]
    assert 2 <= told[0][1] <= 4
    assert 2 <= told[2][1] <= 4


def test_one_alone_keeps_its_turn(rig: Rig, turns: Callable[[], list[tuple[int, int]]]) -> None:
    rig.ask(1, letters(20, 1))
    rig.ask(2, letters(900, 2))
    [(uid, blocks)] = turns()
    assert uid == 2
    assert blocks >= 7


def test_what_was_never_in_a_step_has_begun_all_the_same(rig: Rig) -> None:
    rig.ask(1, letters(20, 1))
    rig.worker._scheduler.costs._mixed = 99  # time for a step without prefill
    long = rig.ask(2, letters(600, 2))
    assert long.timing.first_step is None
    rig.prefiller.tend()
    assert long.is_aside
    assert long.timing.first_step is not None


def test_nobody_waits_for_it_while_others_generate(rig: Rig) -> None:
    rig.both()
    assert rig.prefiller.event(time.monotonic()) is None


def test_it_is_waited_for_where_nothing_else_is_to_be_done(rig: Rig) -> None:
    long = rig.both()
    rig.cancel(1)
    rig.turn()
    event = rig.prefiller.event(time.monotonic())
    assert event == rig.aside.event
    assert rig.prefiller.expected_s > 0
    assert select.select([event], [], [], PATIENCE_S)[0], "a block wakes the worker"
    rig.until_over()
    assert not long.is_aside


def test_it_is_waited_for_where_others_find_no_room_beside_it(rig: Rig) -> None:
    """Else the worker would look again and again whether there is some."""
    rig.both()
    rig.ask(3, letters(1600, 3))
    rig.cancel(1)
    rig.turn()
    assert rig.prefiller.event(time.monotonic()) == rig.aside.event
    rig.until_over()
    assert rig.prefiller.event(time.monotonic()) is None


def test_it_does_not_wait_for_a_worker_that_waits_for_it(rig: Rig) -> None:
    """Nobody generates any more, and what was computed before has not been handed over yet."""
    long = rig.both()
    rig.cancel(1)
    rig.run_until(lambda: len(long.tokens) > long.prompt_tokens)


def test_it_is_not_late_while_it_waits_for_what_was_computed_before(rig: Rig) -> None:
    """The machine may have stood still meanwhile, and both would wait for each other."""
    rig.ask(3, letters(900, 2))
    while len(rig.said[3]) < 1:
        rig.turn()
    rig.cancel(3)
    rig.ask(1, letters(20, 1))
    long = rig.ask(2, letters(900, 2) + letters(400, 5))
    rig.prefiller.tend()
    assert long.is_aside
    assert rig.aside.wanted(1000).stop > 512, "it is handed over in several turns"
    rig.aside.since -= 3600
    rig.run_until(lambda: len(long.tokens) > long.prompt_tokens)


def test_where_it_is_late_nothing_else_is_done_so_that_the_daemon_can_tell(rig: Rig) -> None:
    """A watch sees turns, and would see them for ever while another thread hangs."""
    rig.both()
    late = max(10.0, 20 * rig.aside.block_s)
    assert rig.prefiller.event(rig.aside.since + late - 0.1) is None
    assert rig.prefiller.event(rig.aside.since + late + 0.1) == rig.aside.event


@pytest.mark.usefixtures("endless")
def test_every_block_wakes_a_worker_that_waits_because_it_was_late(rig: Rig) -> None:
    rig.both()
    rig.prefiller.tend()  # hands over what was computed before
    assert select.select([rig.aside.event], [], [], PATIENCE_S)[0]
    assert not rig.aside.is_over


def test_what_it_needed_is_given_back(rig: Rig) -> None:
    rig.both()
    aside, threads = rig.aside, threading.active_count()
    rig.prefiller.close()
    assert threading.active_count() == threads - 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        select.select([aside.event], [], [], 0)
