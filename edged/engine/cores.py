"""How many threads this machine can really run: physical cores, the process's affinity and its cgroup's quota."""

from __future__ import annotations

import os
from pathlib import Path

from edged.engine import cgroup

_CPUS = Path("/sys/devices/system/cpu")


def usable_cores() -> int:
    """Physical cores that this process may use, at least 1.

    Two hardware threads of one core count once: llama.cpp gains nothing from the second, and more threads than cores
    make it 3 to 200 times slower.
    """
    allowed = os.sched_getaffinity(0)
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota()))


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
