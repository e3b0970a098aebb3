"""Where the processors' time goes is read right."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from benchmarks.machine import Cpu, await_quiet, descendants, description, most_resident, resident


def test_time_that_a_process_used_is_its_own() -> None:
    before, started = Cpu.now({"me": os.getpid()}), time.process_time()
    while time.process_time() < started + 0.1:
        pass
    used = Cpu.now({"me": os.getpid()}).of["me"] - before.of["me"]
    assert used == pytest.approx(0.1, abs=0.05)  # the clock of /proc ticks 100 times a second


def test_what_no_named_process_used_is_the_others() -> None:
    before = Cpu({"engine": 10.0, "daemon": 1.0}, machine=100.0, waited={"engine": 1.0, "daemon": 2.0})
    after = Cpu({"engine": 18.0, "daemon": 1.5}, machine=110.5, waited={"engine": 1.5, "daemon": 2.0})
    assert after.since(before, seconds=5.0) == pytest.approx({"engine": 1.6, "daemon": 0.1, "others": 0.4})
    assert after.waits(before, seconds=5.0) == pytest.approx({"engine": 0.1, "daemon": 0.0})


def test_threads_that_have_no_processor_wait() -> None:
    """Two on one processor: at each moment one of them does."""
    busy = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(flush=True)\nwhile True: pass"
    )
    with ExitStack() as stack:
        children = [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE)) for _ in "ab"
        ]
        for child in children:
            stack.callback(child.kill)
        for child in children:
            assert child.stdout is not None
            child.stdout.read(1)
        pids = {str(number): child.pid for number, child in enumerate(children)}
        before, started = Cpu.now(pids), time.monotonic()
        time.sleep(1)
        waits = Cpu.now(pids).waits(before, seconds=time.monotonic() - started)
    assert sum(waits.values()) > 0.5


def test_a_kernel_that_does_not_tell_who_waits_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(f"7 (a b) S {' '.join(['0'] * 50)}\n")
    monkeypatch.setattr("benchmarks.machine._PROC", tmp_path)
    before = Cpu.now({"engine": 7})
    assert before.of == {"engine": 0.0}
    assert Cpu.now({"engine": 7}).waits(before, seconds=1.0) == {}


def test_a_process_that_is_gone_is_an_error_and_no_zero() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    with pytest.raises(FileNotFoundError):
        Cpu.now({"child": child.pid})


@contextmanager
def block(size: int) -> Iterator[None]:
    """So many bytes more; not of malloc, which may keep what was given back."""
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as kept:
        for page in range(0, size, mmap.PAGESIZE):
            kept[page] = 1
        yield


def test_memory_of_a_process_is_what_is_resident() -> None:
    before = resident(os.getpid())
    with block(32 * 2**20):
        assert resident(os.getpid()) - before == pytest.approx(32 * 2**20, rel=0.1)


def test_the_most_memory_that_a_process_had_is_remembered() -> None:
    with block(32 * 2**20):
        most = resident(os.getpid())
    assert resident(os.getpid()) < most - 16 * 2**20
    assert most_resident(os.getpid()) > most - 4 * 2**20


def test_children_of_children_are_found() -> None:
    inner = "import sys; sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}, 'the inner one'], check=True)"
    with subprocess.Popen([sys.executable, "-c", outer, "the outer one"], stdin=subprocess.PIPE) as child:
        try:
            deadline = time.monotonic() + 20
            found = descendants(os.getpid())
            while not any(command.endswith("the inner one") for command in found.values()):
                assert time.monotonic() < deadline, found
                time.sleep(0.01)
                found = descendants(os.getpid())
            assert "the outer one" in found[child.pid]
        finally:
            assert child.stdin is not None
            child.stdin.close()


def test_a_busy_machine_is_waited_for() -> None:
    seen = [1.0, 0.5, 0.0, 1.0]
    await_quiet(60, watch=lambda _seconds: seen.pop(0))
    assert seen == [1.0]


def test_a_machine_that_stays_busy_is_not_waited_for_without_end() -> None:
    def busy(_seconds: float) -> float:
        time.sleep(0.01)
        return 1.0

    await_quiet(0.05, watch=busy)


def test_the_machine_is_described() -> None:
    assert f"{os.cpu_count()} CPUs" in description()
