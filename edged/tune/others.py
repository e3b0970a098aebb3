"""What other processes do meanwhile: figures that were taken beside a busy neighbour are too low. Linux, from /proc."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

#: What others may use beside a measurement. Processors.
QUIET = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Watch:
    """Processor time so far, seconds: of the whole machine, and of this process with its children that have ended."""

    machine: float
    ours: float
    at: float

    @classmethod
    def begin(cls) -> Watch:
        """Read the clocks."""
        own = os.times()
        return cls(
            machine_seconds(),
            own.user + own.system + own.children_user + own.children_system,
            time.monotonic(),
        )

    def others(self) -> float:
        """Processors that others have used on average since this began."""
        now = Watch.begin()
        used = (now.machine - self.machine) - (now.ours - self.ours)
        return max(0.0, used) / max(now.at - self.at, 1 / _TICKS)


def machine_seconds() -> float:
    """Processor time of the whole machine so far, seconds; what the hypervisor gave to others is in it."""
    # user nice system idle iowait irq softirq steal (proc(5))
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = (int(field) / _TICKS for field in fields)
    return user + nice + system + irq + softirq + steal


def look(seconds: float) -> float:
    """Processors that others use, watched for so many seconds in which the caller sleeps."""
    watch = Watch.begin()
    time.sleep(seconds)
    return watch.others()
