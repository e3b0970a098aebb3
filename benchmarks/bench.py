"""Both sides of the comparison, started, and measured in turns."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import Bare, bare_loop, consume
from benchmarks.consumer import Order
from benchmarks.figures import BenchmarkError, EndedEarlyError, Figures, of_bare, of_node, replies
from benchmarks.load import Load, Setup
from benchmarks.machine import Cpu, await_quiet, descendants, description
from benchmarks.report import Repeat, Result
from deploy.stack import broker, daemon, find
from edged.config import load

_NODE = "bench"
#: Tokens of each answer in the turnover, where requests follow each other.
_SHORT = 32
#: Cells of the KV cache that are left for the scheduler's reserve, for each stream.
_SPARE = 64
#: How long the daemon may take to load the model, seconds: the board may be small.
_ONLINE_S = 300.0
#: Short runs by which the length of the others is judged.
_TRIALS = 3
#: So many times a measurement is repeated in which the model ended an answer before its length was reached.
_ATTEMPTS = 3


@dataclass(slots=True)
class Bench:
    """Both sides, ready to be measured."""

    bare: Bare
    port: int
    seconds: float
    pids: dict[str, int]
    seed: int = 0

    def tokens(self, streams: int, room: int) -> int:
        """Tokens that keep so many streams busy for the wanted time, at most what `room` cells of cache hold.

        Judged by the best of a few short runs: one that somebody disturbed would make all that follow too short.
        """
        runs = [self.bare.run(Load(streams, 16, self._seed()), patience_s=self._patience_s) for _ in range(_TRIALS)]
        figures = [of_bare(**run, streams=streams) for run in runs]
        # While the prompts of late streams are computed in pieces, early ones generate already: each must outlast that.
        least = 16 + 6 * streams
        most = (room - figures[0].prompt_tokens) // streams - _SPARE
        if most < least:
            raise BenchmarkError(
                f"{streams} streams have no room in a context of {room} tokens: configure a larger one"
            )
        best = max(f.tokens_per_s for f in figures)
        return max(least, min(most, round(self.seconds * best / streams)))

    def repeat(self, streams: int, tokens: int, *, bare_first: bool) -> Repeat:
        """Measure each side once."""
        sides = [self._bare, self._node] if bare_first else [self._node, self._bare]
        measured = {side.__name__: side(Load(streams, tokens, self._seed())) for side in sides}
        (bare, bare_cpus), (node, cpus) = measured["_bare"], measured["_node"]
        short = min(tokens, _SHORT)
        turnover, _ = self._node(Load(streams, short, self._seed(), turnover_s=1.2 * self.seconds))
        return Repeat(streams, tokens, bare, node, turnover, {**cpus, "bare_others": bare_cpus["others"]})

    def _bare(self, load: Load) -> tuple[Figures, dict[str, float]]:
        pids = {"bare": self.bare.pid}
        before, started = Cpu.now(pids), time.monotonic()
        run = self.bare.run(load, patience_s=self._patience_s)
        cpus = Cpu.now(pids).since(before, seconds=time.monotonic() - started)
        return of_bare(**run, streams=load.streams), cpus

    def _node(self, load: Load) -> tuple[Figures, dict[str, float]]:
        for attempt in range(_ATTEMPTS):
            record = consume(Order(self.port, _NODE, load, self._patience_s, self.pids))
            try:
                return of_node(replies(record.sent, record.messages)), record.cpus
            except EndedEarlyError:
                if attempt + 1 == _ATTEMPTS:
                    raise
                load = Load(load.streams, load.tokens, self._seed(), load.turnover_s)
        raise AssertionError("the last attempt returns or raises")

    @property
    def _patience_s(self) -> float:
        return 120 + 20 * self.seconds

    def _seed(self) -> int:
        self.seed += 1
        return self.seed


def measure(streams: Sequence[int], *, repeats: int, seconds: float, patience_s: float, directory: Path) -> Result:
    """Start both sides and measure them in turns.

    Args:
        streams: numbers of streams.
        repeats: of every number.
        seconds: roughly, of one measurement.
        patience_s: spent in all on waiting for a quiet machine, and on measuring again what others disturbed, seconds.
        directory: an empty one, for logs and state.

    Raises:
        BenchmarkError: a measurement failed.
        StackError: the broker or the daemon did not start.
        ConfigError, ModelFileError: the environment's settings cannot be used.
    """
    config = directory / "edged.toml"
    config.touch()
    settings = load(Path(os.environ.get("EDGED_CONFIG") or config))
    model, *others = settings.models
    if others:
        raise BenchmarkError(f"{len(settings.models)} models are configured: their processes would share the machine")
    if max(streams) > model.parallel:
        raise BenchmarkError(f"model {model.alias!r} serves {model.parallel} requests at once, not {max(streams)}")
    setup = Setup.of(model)
    with (
        broker(directory) as (_, port),
        daemon(directory, node=_NODE, port=port, log=directory / "edged.log") as child,
        bare_loop(setup, directory) as bare,
    ):
        try:
            # The first answer: when it is here, the model is loaded and everything has been used once.
            consume(Order(port, _NODE, Load(1, 4, 0), _ONLINE_S))
            bench = Bench(bare, port, seconds, _pids())
            lengths = {n: min(settings.limits.max_tokens, bench.tokens(n, model.context)) for n in streams}
            measured = take_turns(bench, lengths, repeats, patience_s)
        except BenchmarkError as error:
            raise BenchmarkError(f"{error}\n{child.error('wrote')}") from error
    return Result(
        machine=f"{description()}; {_mosquitto()}",
        model=Path(setup.path).name,
        settings={
            "threads": setup.threads,
            "context": setup.context,
            "prompt tokens": measured[0].bare.prompt_tokens // measured[0].streams,
            "repeats": repeats,
        },
        repeats=measured,
    )


def take_turns(bench: Bench, lengths: Mapping[int, int], repeats: int, patience_s: float) -> list[Repeat]:
    """Measure every number of streams so often; `lengths` are the tokens of an answer, by number of streams."""
    measured = []
    for number in range(repeats):
        for streams, tokens in lengths.items():
            repeat = bench.repeat(streams, tokens, bare_first=number % 2 == 0)
            _tell(f"repeat {number + 1} of {repeats}", repeat)
            while repeat.disturbed and patience_s > 0:
                began = time.monotonic()
                await_quiet(patience_s)
                repeat = bench.repeat(streams, tokens, bare_first=number % 2 == 0)
                _tell("again", repeat)
                patience_s -= time.monotonic() - began
            measured.append(repeat)
    return measured


def _tell(what: str, repeat: Repeat) -> None:
    """Show progress."""
    bare, node = repeat.bare.tokens_per_s, repeat.node.tokens_per_s
    print(
        f"{what}, {repeat.streams} streams: bare {bare:.1f} tokens/s, edged {node:.1f}, ratio {node / bare:.3f}; "
        f"processors that others used: {repeat.cpus['bare_others']:.2f}, {repeat.cpus['others']:.2f}",
        file=sys.stderr,
    )


def _pids() -> dict[str, int]:
    """The processes of the node, by what they are."""
    found = {
        name: pid
        for pid, command in descendants(os.getpid()).items()
        for name, part in (("engine", "edged.engine.worker"), ("daemon", "-m edged run"), ("broker", "mosquitto -c"))
        if part in command
    }
    if len(found) < 3:
        raise BenchmarkError(f"of engine, daemon and broker only {sorted(found)} are running")
    return {name: found[name] for name in ("engine", "daemon", "broker")}


def _mosquitto() -> str:
    """Its name and version, as it says them."""
    said = subprocess.run([find("mosquitto"), "-h"], capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0].replace(" version", "").strip()
