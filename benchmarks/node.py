"""The node that is measured: a broker and a daemon of our own, with the settings of a scenario."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import BenchmarkError
from benchmarks.machine import descendants
from deploy.stack import TAIL_LINES, Child, broker, daemon
from edged.config import Settings

NAME = "bench"
#: How long the daemon may take to load the model, seconds: the board may be small.
ONLINE_S = 300.0


@dataclass(frozen=True, slots=True)
class Node:
    """A daemon and its broker, started."""

    port: int
    daemon: Child

    @property
    def own(self) -> list[int]:
        """The daemon's process and its engine's, of this node alone."""
        return [self.daemon.pid, *descendants(self.daemon.pid)]

    @property
    def pids(self) -> dict[str, int]:
        """Its processes, by what they are.

        Raises:
            BenchmarkError: one of them does not run.
        """
        found = {
            name: pid
            for pid, command in descendants(os.getpid()).items()
            for name, part in (
                ("engine", "edged.engine.worker"),
                ("daemon", "-m edged run"),
                ("broker", "mosquitto -c"),
            )
            if part in command
        }
        if len(found) < 3:
            raise BenchmarkError(f"of engine, daemon and broker only {sorted(found)} are running")
        return {name: found[name] for name in ("engine", "daemon", "broker")}


@contextmanager
def node(settings: Settings, directory: Path, **environment: str) -> Iterator[Node]:
    """Run a broker and a daemon as long as the block does.

    Args:
        settings: its models are the daemon's; everything else comes from the environment and $EDGED_CONFIG.
        directory: for logs and state; made where it is missing.
        environment: settings that this scenario wants otherwise, as `EDGED_STREAM__FLUSH_MS="0"`.

    Raises:
        StackError: broker or daemon did not start, or ended by themselves.
        BenchmarkError: what went wrong in the block, with the warnings and errors of the daemon's log.
    """
    directory.mkdir(parents=True, exist_ok=True)
    models = json.dumps([model.model_dump(mode="json") for model in settings.models])
    with (
        broker(directory) as (_, port),
        daemon(
            directory, node=NAME, port=port, log=directory / "edged.log", EDGED_MODELS=models, **environment
        ) as child,
    ):
        try:
            yield Node(port, child)
        except BenchmarkError as error:
            child.check()  # where it ended, this is what there is to say
            said = [line for line in child.log.splitlines() if '"level": "info"' not in line][-TAIL_LINES:]
            raise BenchmarkError("\n".join([str(error), *(f"  | {line}" for line in said)])) from error
