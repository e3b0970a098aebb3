"""An engine's process and what it has reported, for tests to wait on."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from edged.engine.process import EngineProcess, Lost
from edged.engine.protocol import Generate, Load, Order, Report
from edged.engine.watch import Patience

#: Until then whatever a test waits for has to have happened, also on a machine that is busy; seconds.
PATIENCE_S = 60.0
#: Nobody waits long, and a busy machine is given some time nevertheless. A child that stands still is seen to do so
#: before it has been given enough time for anything else.
IMPATIENT = Patience(look_s=0.05, still_s=1.0, step_s=1.5, steps=3.0, first_s=2.0, between_s=2.0, loading_s=1.5)
R = TypeVar("R")
#: Where the children's modules are found.
ROOT = Path(__file__).parents[2]
#: What those load that have no model.
LOAD = Load(path="scripted")


class Handle:
    """A started `EngineProcess`; ends with the block."""

    def __init__(
        self,
        load: Load,
        command: tuple[str, ...] = (sys.executable, "-m", "edged.engine.worker"),
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        self._reports: queue.SimpleQueue[tuple[int, Report | Lost]] = queue.SimpleQueue()

        def report(child: int, what: Report | Lost) -> None:
            self._reports.put((child, what))

        self.engine = EngineProcess(load, report, command=command, patience=patience)
        #: Everything that was reported so far and waited past, with the number of the child.
        self.heard: list[tuple[int, Report | Lost]] = []

    def __enter__(self) -> Self:
        self.engine.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.engine.stop()

    def send(self, order: Order, *, child: int = 1) -> None:
        self.engine.send(child, order)

    def next(self, kind: type[R]) -> tuple[int, R]:
        """The next report of that kind, and the child it came from."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                child, report = self._reports.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no {kind.__name__} within {PATIENCE_S} s, but {self.heard}") from None
            self.heard.append((child, report))
            if isinstance(report, kind):
                return child, report


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is true that nobody reports."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not so within {PATIENCE_S} s"
        time.sleep(0.01)


def running(pid: int) -> bool:
    """Whether there is such a process, and it is more than an entry that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def child(name: str, *arguments: str, patience: Patience = Patience()) -> Handle:  # noqa: B008 - frozen
    """An engine whose child is one of the scripts beside this file."""
    return Handle(LOAD, (sys.executable, "-m", f"tests.engine.children.{name}", *arguments), patience)


def generate(uid: int, prompt: str) -> Generate:
    """The order for a request of which only the prompt matters."""
    return Generate(
        uid=uid,
        prompt=prompt,
        max_tokens=1,
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        seed=0,
        repeat_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
    )
