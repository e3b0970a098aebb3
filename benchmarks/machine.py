"""The machine: what it is, and which process uses how much of its processors. Linux, from /proc."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from edged.engine.threads import waited_s
from edged.tune.others import look, machine_seconds

#: What other processes may use beside a measurement: processors.
QUIET = 0.1
_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cpu:
    """Processor time so far, seconds: of some processes by their names, and of everything on the machine.

    Attributes:
        of: what each process has used.
        machine: what all together have.
        waited: how long threads of each process were ready to run and had no processor, those of all added up; empty
            where the kernel does not tell.
    """

    of: Mapping[str, float]
    machine: float
    waited: Mapping[str, float]

    @classmethod
    def now(cls, pids: Mapping[str, int]) -> Cpu:
        """Read the clocks.

        Raises:
            FileNotFoundError: one of the processes is gone.
        """
        tells = (_PROC / "self" / "schedstat").exists()
        waited = {name: waited_s(pid) for name, pid in pids.items()} if tells else {}
        return cls({name: _used(pid) for name, pid in pids.items()}, machine_seconds(), waited)

    def since(self, before: Cpu, *, seconds: float) -> dict[str, float]:
        """Processors in use since then, by name; `others` is what none of the named processes used.

        Args:
            before: of the same processes.
            seconds: the time in between.
        """
        ours = {name: used - before.of[name] for name, used in self.of.items()}
        rest = self.machine - before.machine - sum(ours.values())
        return {name: max(0.0, used) / seconds for name, used in {**ours, "others": rest}.items()}

    def waits(self, before: Cpu, *, seconds: float) -> dict[str, float]:
        """Threads that waited for a processor, on average, by name; the arguments are those of `since`."""
        return {name: max(0.0, waited - before.waited[name]) / seconds for name, waited in self.waited.items()}


def await_quiet(patience_s: float, *, watch: Callable[[float], float] = look) -> None:
    """Wait until nobody uses the machine, at most so many seconds.

    Args:
        patience_s: seconds.
        watch: tells how many processors were in use while it slept for the seconds that it is given.
    """
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and watch(1.0) > QUIET:
        pass


def _used(pid: int) -> float:
    """Seconds of processor time that a process has used, children that have ended not included."""
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS  # utime and stime; the name in brackets may have blanks


def resident(pid: int) -> int:
    """Bytes of memory that a process has now, pages of mapped files included.

    Raises:
        FileNotFoundError: the process is gone.
    """
    return _kib(pid, "smaps_rollup", "Rss:") * 1024


def most_resident(pid: int) -> int:
    """Bytes of memory that a process has had at most, pages of mapped files included.

    The kernel counts it on the way, and each thread may be some pages ahead of that count: it is not exact to a MiB.

    Raises:
        FileNotFoundError: the process is gone.
    """
    return _kib(pid, "status", "VmHWM:") * 1024


def _kib(pid: int, file: str, name: str) -> int:
    for line in (_PROC / str(pid) / file).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise FileNotFoundError(f"process {pid} has no memory any more: it has just ended")


def descendants(pid: int) -> dict[int, str]:
    """The command lines of all processes that a process has started, and those have started, by process id."""
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
    found: dict[int, str] = {}
    new = {pid}
    while new := {child for child, parent in parents.items() if parent in new and child not in found}:
        for child in new:
            found[child] = _command(child)
    return found


def _command(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def description() -> str:
    """The machine and the versions that count, in a line."""
    lines = (_PROC / "cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    memory = int((_PROC / "meminfo").read_text().split()[1]) / 2**20
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs, {memory:.0f} GiB; Linux "
        f"{platform.release()}; Python {platform.python_version()}; llama-cpp-python {version('llama-cpp-python')}"
    )
