"""Cells that are taken from one context and put into another are as if they had been computed there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp as llama
import numpy as np
import pytest

from edged.engine.batch import Batch
from edged.engine.context import ABORTED, Context, DecodeError
from edged.engine.model import LogTap, Model
from edged.engine.protocol import Load

TOKENS = [260 + 7 * i % 20 for i in range(256)]  # letters


@contextmanager
def contexts(path: Path, flag: ctypes.Array[ctypes.c_uint8], **fields: object) -> Iterator[tuple[Context, Context]]:
    """The one that a model's requests share, of 512 cells, and a further one of 256."""
    log = LogTap(lambda _level, _line: None)
    load = Load(path=str(path), context=512, parallel=4, threads=2, **fields)  # type: ignore[arg-type]  # handed on
    model = Model(load, on_progress=lambda _fraction: None, log=log)
    with model.quietly():
        aside = model.open_aside(cells=256, batch=64, threads=1, abort_flag=ctypes.addressof(flag))
    try:
        yield model.context, aside
    finally:
        aside.close()
        model.close()
        llama.llama_log_set(llama.llama_log_callback(), ctypes.c_void_p(0))


def compute(context: Context, sequence: int, start: int, tokens: list[int]) -> list[float]:
    """Compute tokens from a position on; returns the logits of the last one."""
    batch = Batch(64)
    for first in range(0, len(tokens), 64):
        piece = tokens[first : first + 64]
        batch.clear()
        index = batch.add(piece, start + first, sequence, logits=first + len(piece) == len(tokens))
        context.decode(batch.raw)
    logits = llama.llama_get_logits_ith(context.pointer, index)
    batch.close()
    return list(np.ctypeslib.as_array(logits, (286,)).astype(float))


@pytest.mark.parametrize("fields", [{}, {"flash_attention": "off"}], ids=str)
def test_what_was_put_is_as_good_as_what_was_computed(plain: Path, fields: dict[str, object]) -> None:
    with contexts(plain, (ctypes.c_uint8 * 8)(), **fields) as (shared, aside):
        compute(aside, 0, 0, TOKENS[:150])
        for start, end in ((0, 64), (64, 128), (128, 150)):
            assert shared.put(2, aside.take(0, start, end))
            assert shared.reached(2) == end
        assert aside.reached(0) == 150, "taking leaves it where it was"
        assert compute(shared, 2, 150, [275]) == pytest.approx(compute(aside, 0, 150, [275]), abs=1e-4)
        assert compute(shared, 1, 0, [275]) != pytest.approx(compute(aside, 0, 151, [275]), abs=1e-2), "it tells them"


def test_it_goes_the_other_way_as_well(plain: Path) -> None:
    with contexts(plain, (ctypes.c_uint8 * 8)()) as (shared, aside):
        compute(shared, 3, 0, TOKENS[:100])
        assert aside.put(0, shared.take(3, 0, 70))
        assert aside.put(0, shared.take(3, 70, 100))
        assert compute(aside, 0, 100, [275]) == pytest.approx(compute(shared, 3, 100, [275]), abs=1e-4)


def test_cells_that_lie_here_and_there_take_it_as_well(plain: Path) -> None:
    with contexts(plain, (ctypes.c_uint8 * 8)()) as (shared, aside):
        compute(aside, 0, 0, TOKENS[:128])
        for i in range(240):  # 480 of 512 cells, of two sequences by turns
            compute(shared, 0, i, [TOKENS[i]])
            compute(shared, 1, i, [TOKENS[i]])
        shared.drop(1)
        assert all(shared.put(2, aside.take(0, start, start + 64)) for start in (0, 64))
        assert compute(shared, 2, 128, [275]) == pytest.approx(compute(aside, 0, 128, [275]), abs=1e-4)


def test_without_room_nothing_is_put_and_nothing_is_lost(plain: Path) -> None:
    with contexts(plain, (ctypes.c_uint8 * 8)()) as (shared, aside):
        compute(aside, 0, 0, TOKENS[:128])
        compute(shared, 0, 0, [*TOKENS, *TOKENS[:200]])
        assert not shared.put(2, aside.take(0, 0, 64))
        assert (shared.reached(0), shared.reached(2)) == (456, 0)
        assert shared.put(2, aside.take(0, 0, 32)), "and a smaller piece finds the room that there is"


def test_each_is_aborted_by_its_own_flag(plain: Path) -> None:
    flag = (ctypes.c_uint8 * 8)()
    with contexts(plain, flag) as (shared, aside):
        flag[0] = 1
        with pytest.raises(DecodeError) as caught:
            compute(aside, 0, 0, TOKENS[:64])
        assert caught.value.code == ABORTED
        compute(shared, 0, 0, TOKENS[:64])
        flag[0] = 0
        compute(aside, 0, 0, TOKENS[:64])


def test_when_the_number_of_threads_changes_the_others_are_kept_off_the_cpu_of_the_one_that_decodes(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = []

    @contextmanager
    def placing() -> Iterator[None]:
        placed.append("begun")
        yield
        placed.append("done")

    monkeypatch.setattr("edged.engine.context.others_elsewhere", placing)
    with contexts(plain, (ctypes.c_uint8 * 8)()) as (shared, _aside):
        shared.use(2)
        compute(shared, 0, 0, [275])
        assert placed == []
        for step, threads in enumerate((1, 2), start=1):
            shared.use(threads)
            compute(shared, 0, 2 * step - 1, [275])
            compute(shared, 0, 2 * step, [275])
            assert placed == ["begun", "done"] * step, "for one step"
