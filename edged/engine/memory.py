"""Whether a model has room: what it needs beside what there is, before it is loaded and the machine begins to swap.

The need is reckoned from the file's header and on the low side: a model that might just fit is tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edged.engine import cgroup
from edged.engine.files import ModelFile, ModelFileError, describe
from edged.engine.protocol import Load

_MIB = 1024 * 1024
#: Bytes of a number in the KV cache. q8_0 has blocks of 32 numbers and a scale (ggml's block_q8_0).
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32}
#: The process itself: Python, numpy, llama.cpp's libraries, the vocabulary. Bytes, measured with the starter model.
_PROCESS = 62 * _MIB
#: Left for everything else on the machine. Bytes.
_MARGIN = 32 * _MIB
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a model needs; 0 where the header does not tell."""

    weights: int
    kv: int
    compute: int

    @property
    def total(self) -> int:
        """All together, and the process itself."""
        return self.weights + self.kv + self.compute + _PROCESS


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that can be had, and where that limit is."""

    available: int
    where: str


def need(load: Load, file: ModelFile) -> Need:
    """What a model needs when it is loaded that way."""
    context = min(load.context, file.context or load.context)
    kv = round(context * (file.kv_numbers or 0) * KV_BYTES[load.kv_type])
    # Logits of every sequence, and some activations of every token that is computed at once; 32-bit floats.
    compute = 4 * (load.parallel * (file.vocabulary or 0) + 16 * load.ubatch * (file.width or 0))
    return Need(file.size, kv, compute)


def room() -> Room | None:
    """The least of what the machine and the control groups leave; None where neither can be found out.

    Memory that only caches files counts as available: the kernel gives it away when it is wanted.
    """
    rooms = []
    for group in cgroup.groups("memory"):
        limits = cgroup.numbers(group, "memory.max", "memory.high", "memory.limit_in_bytes")
        current = cgroup.numbers(group, "memory.current", "memory.usage_in_bytes")
        if limits and current:
            left = max(0, min(limits) - current[0] + _cached(group))
            rooms.append(Room(left, f"in the control group {group.name!r}"))
    machine = _machine()
    if machine is not None:
        rooms.append(Room(machine, "on this machine"))
    return min(rooms, key=lambda one: one.available, default=None)


def fits(size: int) -> bool:
    """Whether so many bytes more can be had now, with some left for everything else; True where nobody knows."""
    there = room()
    return there is None or size + _MARGIN <= there.available


def _cached(group: Path) -> int:
    """What a group and those within it use to cache files, bytes."""
    for prefix in ("total_", ""):  # version 1 has two counts, of which the other is without the groups within
        found = [cgroup.number(group, "memory.stat", f"{prefix}{kind}_file") for kind in ("active", "inactive")]
        if None not in found:
            break
    return sum(count or 0 for count in found)


def _machine() -> int | None:
    """MemAvailable of /proc/meminfo, bytes; None where it is hidden (ProcSubset=pid in systemd)."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def shortage(load: Load) -> str:
    """Why the model has no room, with the figures and what to do; empty where it has, or nobody knows."""
    try:
        file = describe(Path(load.path))
    except ModelFileError:  # llama.cpp will say what is wrong with it
        return ""
    wanted, there = need(load, file), room()
    if there is None or wanted.total + _MARGIN <= there.available:
        return ""
    parts = {
        "weights": wanted.weights,
        f"KV cache for {min(load.context, file.context or load.context)} tokens": wanted.kv,
        "computing": wanted.compute,
        "the process": _PROCESS,
    }
    figures = ", ".join(f"{name} {_mib(size)}" for name, size in parts.items() if size)
    return (
        f"not enough memory for {file.path.name!r}: it needs about {_mib(wanted.total)} MiB ({figures}), and "
        f"{_mib(there.available)} MiB are available {there.where}, of which {_mib(_MARGIN)} are left alone; a smaller "
        "`context`, `kv_type` q8_0 or a smaller model needs less"
    )


def _mib(size: int) -> int:
    return -(-size // _MIB)
