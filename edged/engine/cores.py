"""How many threads this machine can really run: physical cores, the process's affinity and its cgroup's quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")


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
    """The whole CPUs that the cgroup (version 2) grants; a great number where it grants all."""
    try:
        path = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        quota, period = (_CGROUPS / path.lstrip("/") / "cpu.max").read_text().split()
        return math.floor(int(quota) / int(period))
    except (OSError, StopIteration, ValueError):  # no cgroup v2, no limit file, or "max"
        return 2**16
