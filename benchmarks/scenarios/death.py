"""The engine's process dies (SIGKILL) or hangs (SIGSTOP) in the middle of eight streams.

Told is how the streams end, and how long nobody got anything: of the silences after the signal the longest, from the
signal to its end. What was on its way already when the process died comes after the signal, too, and is no recovery.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from benchmarks.client import Exchange, client
from benchmarks.figures import BenchmarkError
from benchmarks.load import Load
from benchmarks.node import Node, node
from benchmarks.outcome import Outcome, Table, Verdict, bars
from benchmarks.scene import Scene

_STREAMS, _TOKENS = 8, 200
_SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
#: The signal comes when every stream has so many tokens.
_UNDER_WAY = 10
#: How long the streams may take to end after the signal, seconds.
_PATIENCE_S, _QUICK_PATIENCE_S = 120.0, 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """What came of one signal.

    Attributes:
        wrong: why streams did not end right; one line each.
        resumed: how often the streams' finals say that they were taken up again.
        recovery_s: from the signal to the first chunk after the longest silence; None where no chunk came any more.
        ended_s: from the signal to the last final; None where one did not come.
    """

    streams: int
    wrong: list[str]
    resumed: int
    recovery_s: float | None
    ended_s: float | None


@dataclass(frozen=True, slots=True)
class Death(Outcome):
    """By the signal."""

    title: ClassVar[str] = f"The engine's process dies or hangs in the middle of {_STREAMS} streams"

    signals: dict[str, Case]

    def tables(self) -> list[Table]:
        """All that is known."""
        return [
            Table(
                "Times from the signal, s",
                ["signal", "streams", "ended right", "taken up again", "next chunk", "all ended", "what went wrong"],
                [
                    [
                        *(name, str(one.streams), str(one.streams - len(one.wrong)), str(one.resumed)),
                        *("-" if at is None else f"{at:.2f}" for at in (one.recovery_s, one.ended_s)),
                        one.wrong[0] if one.wrong else "-",
                    ]
                    for name, one in self.signals.items()
                ],
            )
        ]

    def verdicts(self) -> list[Verdict]:
        """Of the ends."""
        return [
            Verdict(f"{name}: of {one.streams} streams, those that did not end right", len(one.wrong), 0)
            for name, one in self.signals.items()
        ]

    def draw(self, axes: Any) -> None:
        """How long nothing came."""
        bars(axes, list(self.signals), [one.recovery_s or 0.0 for one in self.signals.values()], unit="s of silence")


def measure(scene: Scene) -> Death:
    """Send each signal once, each to a node of its own.

    Raises:
        BenchmarkError: the streams did not begin, or ended before the signal.
    """
    return Death({one.name: _measure(scene, one) for one in _SIGNALS})


def _measure(scene: Scene, number: signal.Signals) -> Case:
    with node(scene.settings, scene.place(f"death-{number.name}")) as served, client(served) as me:
        load = Load(_STREAMS, _TOKENS, 1)
        asked = [me.ask(load.prompt(stream), _TOKENS) for stream in range(_STREAMS)]
        me.until(lambda: all(one.tokens >= _UNDER_WAY or one.final for one in asked), "every stream's beginning")
        if any(one.final for one in asked):
            raise BenchmarkError("a stream ended before the signal was sent: nothing was measured")
        with _struck(served, number) as at:
            me.within(lambda: all(one.final for one in asked), _QUICK_PATIENCE_S if scene.quick else _PATIENCE_S)
    return _case(asked, at)


@contextlib.contextmanager
def _struck(served: Node, number: signal.Signals) -> Iterator[float]:
    """Send the signal; yields when. A process that still hangs at the end is killed: it cannot end by itself."""
    pid = served.pids["engine"]
    at = time.monotonic()
    os.kill(pid, number)
    try:
        yield at
    finally:
        with contextlib.suppress(BenchmarkError):  # no engine runs: it is gone
            if number is signal.SIGSTOP and served.pids["engine"] == pid:
                os.kill(pid, signal.SIGKILL)


def _case(asked: list[Exchange], at: float) -> Case:
    arrivals = [at, *sorted(when for one in asked for when, _ in one.chunks if when > at)]
    silence = max(pairwise(arrivals), key=lambda pair: pair[1] - pair[0], default=None)
    finals = [one.final for one in asked if one.final]
    return Case(
        streams=len(asked),
        wrong=[one.failure for one in asked if one.failure],
        resumed=sum((final.get("metrics") or {}).get("resumed", 0) for final in finals),
        recovery_s=silence[1] - at if silence else None,
        ended_s=max(one.ended for one in asked) - at if len(finals) == len(asked) else None,
    )
