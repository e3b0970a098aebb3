"""What is mapped of a file, and not needed, is in nobody's way."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

import llama_cpp as llama
import pytest

from edged.engine import mapping, worker
from edged.engine.mapping import let_go, share
from edged.engine.model import LogTap, open_file
from edged.engine.protocol import Load, Ready
from edged.engine.requantise import requantise
from tests.engine.handles import Handle, until
from tests.engine.kinds import letters
from tests.engine.rig import Rig
from tests.engine.talk import Talk

SIZE = 64 * mmap.PAGESIZE


def resident(path: Path, process: str = "self") -> int:
    """How much of a file's mappings is in a process's memory, bytes."""
    total, counts = 0, False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            counts = line.endswith(f" {path}")
        elif counts and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """With a space in its name, as people have them."""
    path = tmp_path / "a file"
    path.write_bytes(b"x" * SIZE)
    return path


@pytest.fixture
def mapped(file: Path) -> Iterator[mmap.mmap]:
    """All of the file, read once."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED) as pages:
        assert pages[:] == b"x" * SIZE
        yield pages


def test_what_was_let_go_of_is_out_of_memory_and_can_be_read_again(file: Path, mapped: mmap.mmap) -> None:
    assert resident(file) == SIZE
    let_go(file)
    assert resident(file) == 0
    assert mapped[:] == b"x" * SIZE


def test_a_path_with_links_is_the_file_behind_them(file: Path, mapped: mmap.mmap) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    let_go(link)
    assert resident(file) == 0
    assert mapped[0] == ord("x")


def test_other_files_stay(file: Path, mapped: mmap.mmap) -> None:
    let_go(file.with_name("a file too"))
    assert resident(file) == SIZE
    assert mapped[0] == ord("x")


def test_what_was_written_to_a_private_copy_stays(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        pages[:3] = b"abc"
        let_go(file)
        assert pages[:4] == b"abcx"


def test_the_share_that_is_in_memory_is_told(file: Path, mapped: mmap.mmap) -> None:
    assert share(file) == 1
    let_go(file)
    assert share(file) == 0
    assert mapped[0] == ord("x")
    assert share(file) > 0


def test_of_what_is_not_mapped_nothing_is_missing(file: Path) -> None:
    assert share(file) == 1


def test_without_proc_nothing_is_done(
    file: Path, mapped: mmap.mmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "_MAPS", tmp_path / "nowhere")
    monkeypatch.setattr(mapping, "_SMAPS", tmp_path / "nowhere")
    let_go(file)
    assert resident(file) == SIZE
    assert share(file) == 1
    assert mapped[0] == ord("x")


def test_of_a_model_that_was_loaded_nothing_is_in_memory_twice(starter: Path) -> None:
    log = LogTap(lambda _level, _text: None)
    pointer = open_file(starter, gpu_layers=0, on_progress=lambda _fraction: None, log=log)
    try:
        assert resident(starter) == 0, "what is needed of it comes with the first step"
    finally:
        llama.llama_model_free(pointer)
        llama.llama_log_set(llama.llama_log_callback(), ctypes.c_void_p(0))  # the tap is gone in a moment


def test_a_model_without_repacked_weights_answers_as_well(starter: Path) -> None:
    with Handle(Load(path=str(starter), context=256, threads=1, digest="known", repack=False)) as handle:
        assert Talk(handle).say("Name a colour.", max_tokens=5).text
        assert resident(starter, str(handle.engine.pid)) > starter.stat().st_size / 2, "they are used as they are there"


def test_of_a_file_that_llama_cpp_repacks_next_to_nothing_stays_in_memory(starter: Path, tmp_path: Path) -> None:
    path = tmp_path / "repacked.gguf"
    requantise(starter, path, "Q4_0", threads=1, on_tensor=lambda: None)
    with Handle(Load(path=str(path), context=256, threads=1, digest="known")) as handle:
        handle.next(Ready)
        until(lambda: resident(path, str(handle.engine.pid)) < path.stat().st_size / 20)


def test_it_is_let_go_of_whenever_there_is_nothing_to_do_any_more(
    rig: Rig, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = list[Path]()
    monkeypatch.setattr(worker, "let_go", gone.append)
    rig.worker._is_repacked = True
    rig.ask(1, letters(20, 1), max_tokens=5)
    rig.run_until(lambda: bool(gone))
    assert (gone, rig.worker._scheduler.running) == ([plain], [])
    rig.worker._rest()
    assert gone == [plain], "nothing has come back meanwhile"
    rig.ask(2, letters(20, 1), max_tokens=5)
    rig.worker._rest()
    assert gone == [plain] * 2


def test_of_weights_that_are_used_as_they_are_nothing_is_let_go_of(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = list[Path]()
    monkeypatch.setattr(worker, "let_go", gone.append)
    assert not rig.worker._is_repacked
    rig.worker._rest()
    assert gone == []
