"""How many threads this machine can really run: physical cores, the process's affinity and its cgroup's quota.

And where they run while their number changes.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edged.engine import cgroup

_CPUS = Path("/sys/devices/system/cpu")
_TASKS = Path("/proc/self/task")


def usable_cores() -> int:
    """Physical cores that this process may use, at least 1.

    Two hardware threads of one core count once: llama.cpp gains nothing from the second, and more threads than cores
    make it 3 to 200 times slower.
    """
    allowed = os.sched_getaffinity(0)
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota()))


@contextmanager
def others_elsewhere() -> Iterator[None]:
    """Meanwhile, keep the other threads of this process off the CPU that the caller is on.

    The kernel puts a thread that wakes up, or begins, behind the one that woke or began it where no other CPU is idle
    in that moment, as when a thread still spins there for something to do. It may take it 20 ms to see that they should
    be apart. Does nothing where there is no other CPU, or where that is not allowed.
    """
    allowed = os.sched_getaffinity(0)
    elsewhere = allowed - {_current_cpu()}
    if not elsewhere:
        yield
        return
    _allow(_others(), elsewhere)
    try:
        yield
    finally:
        freed = set[int]()
        while new := _others() - freed:  # a thread inherits from the one that begins it, also meanwhile
            _allow(new, allowed)
            freed |= new


def _current_cpu() -> int:
    """Where the calling thread is; -1 where nobody knows (sched_getcpu(3))."""
    return int(ctypes.CDLL(None).sched_getcpu())


def _others() -> set[int]:
    """The threads of this process but for the calling one."""
    try:
        return {int(task.name) for task in _TASKS.iterdir()} - {threading.get_native_id()}
    except OSError:  # there may be no /proc
        return set()


def _allow(threads: Iterable[int], cpus: set[int]) -> None:
    for thread in threads:
        with suppress(OSError):  # it has ended, or somebody forbids it
            os.sched_setaffinity(thread, cpus)


def _siblings(cpu: int) -> str:
    try:
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """The whole CPUs that the control groups grant; a great number where they grant all."""
    limits = [_limit(group) for group in cgroup.groups("cpu")]
    return min((int(quota) // int(period) for quota, period in limits if quota.isdigit()), default=2**16)


def _limit(group: Path) -> tuple[str, str]:
    """The time that a group may compute, and in how long; not a number where that is not limited."""
    quota, _, period = (cgroup.value(group, "cpu.max") or "max").partition(" ")
    if period:
        return quota, period
    return cgroup.value(group, "cpu.cfs_quota_us") or "max", cgroup.value(group, "cpu.cfs_period_us") or "1"
