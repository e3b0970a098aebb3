"""Memory of both processes after eight streams ran, and after long prompts; what an idle node uses of the processor.

Memory is what is resident, pages of mapped files included (`Rss` of /proc/PID/smaps_rollup): all that the machine
has to have. What a child has to have at least is the file and the KV cache. Long prompts that come while others
generate are computed in a context of their own, which is freed afterwards: they come in different lengths, so that what
one of them leaves behind is not just what the next one needs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks.client import Client, client
from benchmarks.figures import BenchmarkError
from benchmarks.load import Load, Setup, numbers
from benchmarks.machine import Cpu, resident
from benchmarks.node import node
from benchmarks.outcome import Outcome, Table, Verdict, bars
from benchmarks.scene import Scene
from edged.engine import protocol
from edged.engine.files import describe
from edged.engine.memory import need

_STREAMS, _TOKENS = 8, 64
#: Tokens of the long prompts.
_LONG, _QUICK_LONG = (300, 1000, 650, 1250, 450, 1500, 800, 1100), (300, 650)
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
        resident: of each process, after the streams and after the long prompts.
        idle_s: for so long nothing was asked of the node, seconds.
        idle: processors that each process used then.
    """

    title: ClassVar[str] = f"Memory after {_STREAMS} streams and after long prompts, and idling"

    file: int
    kv: int
    resident: dict[str, dict[str, int]]
    idle_s: float
    idle: dict[str, float]

    @property
    def rest(self) -> dict[str, int]:
        """What the engine's process has besides the file and the KV cache, after either."""
        return {after: sizes["engine"] - self.file - self.kv for after, sizes in self.resident.items()}

    def tables(self) -> list[Table]:
        """Both."""
        return [
            Table(
                "Resident memory, MiB",
                ["after", "daemon", "engine", "of which file", "KV cache", "all else"],
                [[after, *(f"{size / _MIB:.1f}" for size in self._sizes(after).values())] for after in self.resident],
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
            *(
                Verdict(
                    f"engine after {after}, besides the file and the KV cache", rest / _MIB, _REST_BYTES / _MIB, "MiB"
                )
                for after, rest in self.rest.items()
            ),
            Verdict("daemon and engine while idle", idle, _IDLE_CORES, "cores"),
        ]

    def draw(self, axes: Any) -> None:
        """The parts of the memory."""
        bars(
            axes,
            [f"{name}, after {after}" for after in self.resident for name in self._sizes(after)],
            [size / _MIB for after in self.resident for size in self._sizes(after).values()],
            unit="MiB resident",
        )

    def _sizes(self, after: str) -> dict[str, int]:
        return {**self.resident[after], "file": self.file, "KV cache": self.kv, "all else": self.rest[after]}


def measure(scene: Scene) -> Memory:
    """Let eight streams run, weigh, do so again after long prompts, and let the node rest.

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
            weighed = {"the streams": _resident(pids)}
            for tokens in _QUICK_LONG if scene.quick else _LONG:
                _beside_a_stream(me, tokens)
            weighed["long prompts"] = _resident(pids)
        time.sleep(1)  # what follows the last answer is no idling
        before, started = Cpu.now(pids), time.monotonic()
        time.sleep(_QUICK_IDLE_S if scene.quick else _IDLE_S)
        seconds = time.monotonic() - started
        idle = Cpu.now(pids).since(before, seconds=seconds)
    return Memory(
        file=form.file.stat().st_size,
        kv=kv,
        resident=weighed,
        idle_s=seconds,
        idle={name: idle[name] for name in pids},
    )


def _resident(pids: dict[str, int]) -> dict[str, int]:
    return {name: resident(pids[name]) for name in ("daemon", "engine")}


def _beside_a_stream(me: Client, tokens: int) -> None:
    """Ask for a prompt of so many tokens while another request is answered."""
    load = Load(2, 1, tokens, numbers=numbers(tokens))
    stream = me.ask(Load(1, 1, tokens).prompt(0), 2000)
    me.until(lambda: bool(stream.chunks), "the first token of a stream")
    me.finish([me.ask(load.prompt(1), 2)])
    if not stream.final:
        me.cancel(stream)
    me.finish([stream])
