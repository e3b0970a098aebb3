"""As many threads as the machine can really run."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.engine import cgroup, cores
from edged.engine.cores import others_elsewhere, usable_cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight hardware threads of four cores, 0 and 4 being the same one; no quota."""
    for cpu in range(8):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(cores, "_CPUS", tmp_path)
    monkeypatch.setattr(cores, "_quota", lambda: 2**16)
    return tmp_path


@pytest.mark.parametrize(
    ("allowed", "usable"), [(range(8), 4), (range(4), 4), ({0, 4}, 1), ({1, 2, 5}, 2), ({3}, 1)], ids=str
)
@pytest.mark.usefixtures("machine")
def test_threads_of_one_core_count_once_and_only_those_allowed(
    monkeypatch: pytest.MonkeyPatch, allowed: range | set[int], usable: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(allowed))
    assert usable_cores() == usable


def test_where_the_topology_is_unknown_each_cpu_is_a_core(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_CPUS", machine / "nowhere")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 4})
    assert usable_cores() == 3


@pytest.mark.parametrize(("quota", "usable"), [(3, 3), (1, 1), (0, 1)])
@pytest.mark.usefixtures("machine")
def test_a_quota_is_a_limit_but_for_one_thread(monkeypatch: pytest.MonkeyPatch, quota: int, usable: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(cores, "_quota", lambda: quota)
    assert usable_cores() == usable


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The control group of edged.service inside of system.slice; its directory."""
    (tmp_path / "self").write_text("1:cpu:/old\n0::/system.slice/edged.service\n")
    group = tmp_path / "system.slice" / "edged.service"
    group.mkdir(parents=True)
    monkeypatch.setattr(cgroup, "_SELF", tmp_path / "self")
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path)
    return group


@pytest.mark.parametrize(("limit", "quota"), [("250000 100000", 2), ("50000 100000", 0), ("max 100000", 2**16)])
def test_the_quota_is_that_of_the_own_control_group(groups: Path, limit: str, quota: int) -> None:
    (groups / "cpu.max").write_text(f"{limit}\n")
    assert cores._quota() == quota


def test_the_quota_of_a_group_around_the_own_one_counts(groups: Path) -> None:
    (groups / "cpu.max").write_text("400000 100000\n")
    (groups.parent / "cpu.max").write_text("100000 100000\n")
    assert cores._quota() == 1


@pytest.mark.parametrize(("limit", "quota"), [("250000", 2), ("-1", 2**16)])
def test_the_quota_of_version_1_counts_as_well(groups: Path, limit: str, quota: int) -> None:
    group = groups.parents[1] / "cpu" / "old"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text(f"{limit}\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert cores._quota() == quota


def test_without_control_groups_there_is_no_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_SELF", tmp_path / "nowhere")
    assert cores._quota() == 2**16


def test_this_machine_has_at_least_one_and_no_more_than_its_cpus() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.fixture
def other() -> Iterator[int]:
    """Another thread of this process, asleep."""
    is_over = threading.Event()
    thread = threading.Thread(target=is_over.wait)
    thread.start()
    yield thread.native_id or 0
    is_over.set()
    thread.join()


def test_the_other_threads_stay_off_the_cpu_of_the_one_that_wakes_them(
    other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = os.sched_getaffinity(0)
    for here in allowed:
        monkeypatch.setattr(cores, "_current_cpu", lambda here=here: here)
        with others_elsewhere():
            assert os.sched_getaffinity(other) == (allowed - {here} or allowed)
            assert os.sched_getaffinity(0) == allowed
        assert os.sched_getaffinity(other) == allowed


def test_a_thread_that_began_meanwhile_may_be_anywhere_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.sched_getaffinity(0)
    is_over, began, late = threading.Event(), threading.Event(), list[threading.Thread]()

    def begin() -> None:
        """In a thread that is kept off."""
        began.wait()
        late.append(threading.Thread(target=is_over.wait))
        late[-1].start()

    first = threading.Thread(target=begin)
    first.start()
    monkeypatch.setattr(cores, "_current_cpu", lambda: min(allowed))
    with others_elsewhere():
        began.set()
        first.join()
        inherited = os.sched_getaffinity(late[0].native_id or 0)
    freed = os.sched_getaffinity(late[0].native_id or 0)
    is_over.set()
    late[0].join()
    assert inherited == (allowed - {min(allowed)} or allowed)
    assert freed == allowed


def test_they_may_be_anywhere_again_after_a_failure(other: int) -> None:
    allowed = os.sched_getaffinity(0)
    with pytest.raises(RuntimeError), others_elsewhere():
        raise RuntimeError
    assert os.sched_getaffinity(other) == allowed


def test_where_the_current_cpu_is_unknown_they_stay_where_they_are(other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_current_cpu", lambda: -1)
    with others_elsewhere():
        assert os.sched_getaffinity(other) == os.sched_getaffinity(0)


def test_where_threads_may_not_be_placed_the_kernel_places_them(other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def forbidden(thread: int, _cpus: set[int]) -> None:
        asked.append(thread)
        raise PermissionError

    monkeypatch.setattr(cores, "_current_cpu", lambda: -1)  # else there is nothing to ask for with a single CPU
    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    with others_elsewhere():
        assert asked.count(other) == 1
        assert os.sched_getaffinity(other) == os.sched_getaffinity(0)
    assert asked.count(other) == 2, "before and after"


def test_where_the_threads_are_not_known_they_stay_where_they_are(
    other: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "_TASKS", tmp_path / "nowhere")
    with others_elsewhere():
        assert os.sched_getaffinity(other) == os.sched_getaffinity(0)


def test_the_current_cpu_is_one_that_is_allowed() -> None:
    assert cores._current_cpu() in os.sched_getaffinity(0)
