"""The processes that measure, as `serving.py` sees them."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.consumer import READY, Order, Record
from benchmarks.figures import BenchmarkError
from benchmarks.load import Load, Setup

ROOT = Path(__file__).resolve().parent.parent
#: How long a child may take to end before it is killed, seconds.
_END_S = 10.0
#: How long loading the model may take, seconds: the board may be small, and its disk slow.
_LOAD_S = 300.0


class Loop:
    """A running `bare.py` or `highlevel.py`, with the model loaded."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self._name = name
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def run(self, load: Load, *, patience_s: float) -> dict[str, Any]:
        """Measure; a `BareRun` as a dictionary, or what the other script answers.

        Raises:
            BenchmarkError: it failed, or did not answer in time.
        """
        self.say(asdict(load))
        return self.hear(patience_s)

    def hear(self, patience_s: float) -> dict[str, Any]:
        """What it says next.

        Raises:
            BenchmarkError: it failed, or did not answer in time.
        """
        out = self._process.stdout
        if out is None or not select.select([out], [], [], patience_s)[0]:
            raise BenchmarkError(f"{self._name} said nothing for {patience_s:.0f} s")
        line = out.readline()
        if not line:
            raise BenchmarkError(f"{self._name} ended: {self._log.read_text(errors='replace').strip()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def say(self, order: dict[str, Any]) -> None:
        """Give it a line."""
        _write(self._process, json.dumps(order))


def bare_loop(setup: Setup, directory: Path) -> AbstractContextManager[Loop]:
    """Run `bare.py` as long as the block does; its log goes into a directory.

    Raises:
        BenchmarkError: it cannot load the model.
    """
    return _loop("the bare loop", "benchmarks.bare", setup, directory / "bare.log")


def high_level(setup: Setup, directory: Path) -> AbstractContextManager[Loop]:
    """The same with `highlevel.py`."""
    return _loop("llama_cpp.Llama", "benchmarks.highlevel", setup, directory / "highlevel.log")


@contextmanager
def _loop(name: str, module: str, setup: Setup, log: Path) -> Iterator[Loop]:
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
        )
    with process:
        try:
            loop = Loop(name, process, log)
            loop.say(asdict(setup))
            loop.hear(_LOAD_S)
            yield loop
            if process.stdin is not None:
                process.stdin.close()  # the end of its orders
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
        finally:
            process.kill()


class Consumer:
    """A running `consumer.py`.

    Args:
        patience_s: how long it may take until all answers have ended, seconds.
        said: what has been read of its standard output.
    """

    def __init__(self, process: subprocess.Popen[str], patience_s: float, said: str) -> None:
        self._process = process
        self._patience_s = patience_s
        self._said = said

    def start(self) -> None:
        """Have it send its requests."""
        _write(self._process, READY)

    def record(self) -> Record:
        """What it noted, when all answers have ended.

        Raises:
            BenchmarkError: it failed, or did not get all answers in time.
        """
        try:
            said, complaint = self._process.communicate(timeout=self._patience_s)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"the consumer did not end within {self._patience_s:.0f} s") from None
        if self._process.returncode:
            raise BenchmarkError(f"the consumer failed: {complaint.strip()[-2000:]}")
        record = Record(**json.loads(self._said + said))
        if record.complaint:
            raise BenchmarkError(record.complaint)
        return record


@contextmanager
def consumer(order: Order) -> Iterator[Consumer]:
    """Run `consumer.py` as long as the block does; it is connected, and the node is online.

    Raises:
        BenchmarkError: it failed, or the node is not online in time.
    """
    patience_s = order.patience_s + 30
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.consumer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            _write(process, json.dumps(asdict(order)))
            out = process.stdout
            first = out.readline() if out is not None and select.select([out], [], [], patience_s)[0] else ""
            is_ready = first == f"{READY}\n"
            one = Consumer(process, patience_s, "" if is_ready else first)
            if not is_ready:
                one.record()  # it has a complaint
            yield one
        finally:
            process.kill()


def consume(order: Order) -> Record:
    """Have `consumer.py` carry out an order.

    Raises:
        BenchmarkError: it failed, or did not get all answers in time.
    """
    with consumer(order) as one:
        one.start()
        return one.record()


def _write(process: subprocess.Popen[str], line: str) -> None:
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # hearing nothing will tell why
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
