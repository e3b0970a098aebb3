"""An engine for a node under fire: no model, always a little to say, so that control messages find something going."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from edged.engine.process import Lost
from edged.engine.protocol import Cancel, Finished, Generate, Hold, Load, Order, Ready, Release, Report, Step

#: Tokens of an answer, unless the request wants fewer; and the time between two, seconds.
ANSWER = ("fi", "ne", ".", " Gründ", "lich", " 🐦")
_STEP_S = 0.002
#: This is answered at once. All else gets a token in so many steps only, so that there is always something going.
QUICK, _SLOW = "hello", 16


class BusyEngine:
    """Takes the place of `EngineProcess`. One thread does everything, so nothing has to be locked."""

    pid: int | None = None

    def __init__(self, load: Load, report: Callable[[int, Report | Lost], None]) -> None:
        self._load = load
        self._report = report
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._running: dict[int, Generate] = {}
        self._said: dict[int, int] = {}
        self._held: set[int] = set()
        self._steps = 0
        self._thread = threading.Thread(target=self._serve, name="busy-engine")

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._orders.put(None)
        self._thread.join()

    def send(self, _child: int, order: Order) -> None:
        self._orders.put(order)

    def _serve(self) -> None:
        self._report(1, Ready(self._load.context, self._load.parallel, 1, 0, "none", "sha256:0"))
        while True:
            try:
                order = self._orders.get(timeout=_STEP_S if self._running.keys() - self._held else None)
            except queue.Empty:
                self._step()
                continue
            match order:
                case None:
                    return
                case Generate(uid=uid):
                    self._running[uid] = order
                    self._said[uid] = len(order.generated)
                case Cancel(uid=uid) if uid in self._running:
                    self._report(1, Step(finished=[self._finish(uid, "cancelled")]))
                case Hold(uid=uid) if uid in self._running:
                    self._held.add(uid)
                case Release(uid=uid):
                    self._held.discard(uid)

    def _step(self) -> None:
        """A token for everybody who is not held."""
        step = Step()
        self._steps += 1
        for uid in self._running.keys() - self._held:
            if self._steps % _SLOW and not self._is_quick(uid):
                continue
            at = self._said[uid]
            if at >= len(ANSWER):
                step.finished.append(self._finish(uid, "stop"))
            elif at >= self._running[uid].max_tokens:
                step.finished.append(self._finish(uid, "length"))
            else:
                step.deltas.append((uid, ANSWER[at], [at]))
                self._said[uid] = at + 1
        if step.deltas or step.finished:
            self._report(1, step)

    def _is_quick(self, uid: int) -> bool:
        messages = self._running[uid].messages or []
        return bool(messages) and messages[-1][1] == QUICK

    def _finish(self, uid: int, reason: str) -> Finished:
        del self._running[uid]
        self._held.discard(uid)
        return Finished(uid, reason, prompt_tokens=1, completion_tokens=self._said.pop(uid))
