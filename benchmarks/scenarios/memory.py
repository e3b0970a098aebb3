"""Memory of both processes after eight streams ran, and what an idle node uses of the processor.

Memory is what is resident, pages of mapped files included (`Rss` of /proc/PID/smaps_rollup): all that the machine
has to have. What a child has to have at least is the file and the KV cache.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks.client import client
from benchmarks.figures import BenchmarkError
from benchmarks.load import Load, Setup
from benchmarks.machine import Cpu, resident
from benchmarks.node import node
from benchmarks.outcome import Outcome, Table, Verdict, bars
from benchmarks.scene import Scene
from edged.engine import protocol
from edged.engine.files import describe
from edged.engine.memory import need

_STREAMS, _TOKENS = 8, 64
_MIB = 2**20
_REST_BYTES = 80 * _MIB
_IDLE_CORES = 0.005
#: How long idling is watched, seconds.
_IDLE_S, _QUICK_IDLE_S = 60.0, 10.0


@dataclass(frozen=True, slots=True)
class Memory(Outcome):
    """Bytes, and parts of a core.

    Attributes:
        file: size of the model's.
        kv: of the KV cache, by the file's header and the configured context.
        daemon, engine: resident after the streams.
        idle_s: for so long nothing was asked of the node, seconds.
        idle: processors that each process used then.
    """

    title: ClassVar[str] = f"Memory after {_STREAMS} streams, and idling"

    file: int
    kv: int
    daemon: int
    engine: int
    idle_s: float
    idle: dict[str, float]

    @property
    def rest(self) -> int:
        """What the engine's process has besides the file and the KV cache."""
        return self.engine - self.file - self.kv

    def tables(self) -> list[Table]:
        """Both."""
        sizes = (self.daemon, self.engine, self.file, self.kv, self.rest)
        return [
            Table(
                "Resident memory, MiB",
                ["daemon", "engine", "of which file", "KV cache", "all else"],
                [[f"{size / _MIB:.1f}" for size in sizes]],
            ),
            Table(
                f"Processors in use while idle, over {self.idle_s:.0f} s",
                list(self.idle),
                [[f"{used:.4f}" for used in self.idle.values()]],
            ),
        ]

    def verdicts(self) -> list[Verdict]:
        """Of the engine's memory, and of idling."""
        idle = self.idle["daemon"] + self.idle["engine"]
        return [
            Verdict("engine, besides the file and the KV cache", self.rest / _MIB, _REST_BYTES / _MIB, "MiB"),
            Verdict("daemon and engine while idle", idle, _IDLE_CORES, "cores"),
        ]

    def draw(self, axes: Any) -> None:
        """The parts of the memory."""
        names = ["daemon", "engine", "  file", "  KV cache", "  all else"]
        sizes = (self.daemon, self.engine, self.file, self.kv, self.rest)
        bars(axes, names, [size / _MIB for size in sizes], unit="MiB resident")


def measure(scene: Scene) -> Memory:
    """Let eight streams run, weigh, and let the node rest.

    Raises:
        BenchmarkError: a stream failed, or the file's header does not tell the size of the cache.
    """
    form = scene.form
    kv = need(protocol.Load(**Setup.of(form.settings).load), describe(form.file)).kv
    if not kv:
        raise BenchmarkError(f"the header of {form.file.name!r} does not tell how large the KV cache is")
    with node(form.settings, scene.place("memory")) as served:
        with client(served) as me:
            load = Load(_STREAMS, _TOKENS, 1)
            me.finish([me.ask(load.prompt(stream), _TOKENS) for stream in range(_STREAMS)])
        pids = served.pids
        sizes = {name: resident(pid) for name, pid in pids.items()}
        time.sleep(1)  # what follows the last answer is no idling
        before, started = Cpu.now(pids), time.monotonic()
        time.sleep(_QUICK_IDLE_S if scene.quick else _IDLE_S)
        seconds = time.monotonic() - started
        idle = Cpu.now(pids).since(before, seconds=seconds)
    return Memory(
        file=form.file.stat().st_size,
        kv=kv,
        daemon=sizes["daemon"],
        engine=sizes["engine"],
        idle_s=seconds,
        idle={name: idle[name] for name in pids},
    )
