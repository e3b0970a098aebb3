"""Whether a child that has work still gets on with it. Judged by progress, never by a bare timer.

A step that takes its time on a slow or busy machine is no hang: it is compared with what such steps have cost so far,
and as long as the process computes or reads from its disk it is given much more time than when it does nothing at all.
Times are counted in looks at the child, so that nobody blames it where the whole machine stood still.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from edged.engine.protocol import Cancel, Generate, Hold, Order, Ready, Release, Report, Step
from edged.engine.pulse import Pulse

#: In /proc/PID/stat, behind the name (proc(5)): major faults, user time, system time.
_FAULTS, _UTIME, _STIME = 9, 11, 12


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is too long, seconds.

    Attributes:
        look_s: from one look at the child to the next, while it has work.
        still_s: without any sign of life, or `still_steps` times as long as the step should take.
        step_s: in one step, although it computes, or `steps` times as long as it should take.
        first_s: in a step of which nobody knows how long it should take.
        between_s: between two steps.
        loading_s: without any sign of life while it loads the model, which may be on a slow disk.
    """

    look_s: float = 1.0
    still_s: float = 5.0
    still_steps: float = 3.0
    step_s: float = 30.0
    steps: float = 100.0
    first_s: float = 600.0
    between_s: float = 60.0
    loading_s: float = 60.0


class Watch:
    """Looks at one child.

    Args:
        pid: of the child.
        pulse: the page that it shares.
        patience: how long is too long.
    """

    def __init__(self, pid: int, pulse: Pulse, patience: Patience) -> None:
        self._process = Path(f"/proc/{pid}")
        self._pulse = pulse
        self._patience = patience
        self._loading = True
        self._heard = 0
        self._look_at: float | None = None
        self._signs: tuple[object, ...] = ()
        self._turn = (-1, 0)
        self._still = 0
        self._same = 0
        #: The requests that it was given and has not finished.
        self.at_work: set[int] = set()
        #: Of these, those for which it has nothing to do for now.
        self._held: set[int] = set()

    def sent(self, order: Order) -> None:
        """The child was given an order."""
        match order:
            case Generate(uid):
                self.at_work.add(uid)
            case Hold(uid) if uid in self.at_work:
                self._held.add(uid)
            case Release(uid) | Cancel(uid):  # one that is held is to end all the same
                self._held.discard(uid)

    def heard(self, report: Report) -> None:
        """The child has reported something."""
        self._heard += 1
        if isinstance(report, Ready):
            self._loading = False
        elif isinstance(report, Step):
            ended = [one.uid for one in report.finished]
            self.at_work.difference_update(ended)
            self._held.difference_update(ended)

    def timeout(self, now: float) -> float | None:
        """How long until the next look is due, seconds; None while there is nothing to look for."""
        if not self._is_due:
            return None
        return 0.0 if self._look_at is None else max(0.0, self._look_at - now)

    def look(self, now: float) -> str:
        """Look at the child where it is time, while it has something to do; `now` in monotonic seconds.

        Returns:
            Why it is to be given up; empty while it gets on.
        """
        if not self._is_due:
            self._look_at = None
            return ""
        patience = self._patience
        if self._look_at is None:
            self._look_at, self._still, self._same = now + patience.look_s, 0, 0
            self._signs, self._turn = self._vital(), (self._pulse.turn, self._heard)
            return ""
        if now < self._look_at:
            return ""
        self._look_at = now + patience.look_s
        signs, turn = self._vital(), (self._pulse.turn, self._heard)
        self._still = 0 if signs != self._signs else self._still + 1
        self._same = 0 if turn != self._turn else self._same + 1
        self._signs, self._turn = signs, turn
        return self._verdict(in_step=turn[0] % 2 == 1)

    @property
    def _is_due(self) -> bool:
        """Whether the child has something to do: a step that was begun is to end, even if all are held by now."""
        return self._loading or bool(self.at_work - self._held) or (bool(self.at_work) and self._pulse.turn % 2 == 1)

    def _verdict(self, *, in_step: bool) -> str:
        patience, expected_s = self._patience, self._pulse.expected_s
        still_s, same_s = self._still * patience.look_s, self._same * patience.look_s
        if self._loading and not in_step:
            return f"it has not moved for {still_s:.0f} s while it loaded" if still_s >= patience.loading_s else ""
        should = f" in a step that should take {expected_s:.2g} s" if in_step and expected_s else ""
        if still_s >= max(patience.still_s, patience.still_steps * expected_s * in_step):
            return f"it has not moved for {still_s:.0f} s{should}"
        if not in_step:
            limit_s = patience.between_s
        else:
            limit_s = max(patience.step_s, patience.steps * expected_s) if expected_s else patience.first_s
        return f"it has computed for {same_s:.0f} s without a result{should}" if same_s >= limit_s else ""

    def _vital(self) -> tuple[object, ...]:
        """What changes while a process lives: its processor time, what it has read, its steps and its reports."""
        signs: list[object] = [self._heard, self._pulse.turn]
        with contextlib.suppress(OSError, IndexError):  # it has just ended
            fields = (self._process / "stat").read_text().rpartition(")")[2].split()
            signs += [fields[_FAULTS], fields[_UTIME], fields[_STIME]]
        with contextlib.suppress(OSError, StopIteration):  # not everybody may read it
            lines = (self._process / "io").read_text().splitlines()
            signs.append(next(line for line in lines if line.startswith("read_bytes")))
        return tuple(signs)
