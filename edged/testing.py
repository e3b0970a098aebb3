"""For tests, the project's own and its users': an engine that says what the test wants, without a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from edged.engine.process import Lost
from edged.engine.protocol import Cancel, Finished, Generate, Load, Order, Ready, Report, Step

#: What a scripted engine answers with, piece by piece; None = nothing by itself, the test speaks for it.
Answer = Callable[[Generate], Iterable[str]] | None


class ScriptedEngine:
    """Takes the place of `EngineProcess`: no process and no model, every report comes when the test says so.

    Each piece of an answer counts as one token and one step. Methods may be called from any thread.

    Attributes:
        running: the requests that were given to it and have not ended.
        cancelled: the uids that it was asked to cancel, in order.
    """

    #: There is no process.
    pid: int | None = None

    def __init__(
        self,
        load: Load,
        report: Callable[[int, Report | Lost], None],
        *,
        answer: Answer = None,
        ready: bool = True,
        obedient: bool = True,
    ) -> None:
        """Make one.

        Args:
            load: what a real child would load.
            report: where reports go.
            answer: gives the pieces of each answer; they are all reported as soon as the request comes.
            ready: whether it is ready as soon as it is started.
            obedient: whether a cancelled request ends.
        """
        self._load = load
        self._report = report
        self._answer = answer
        self._ready = ready
        self._obedient = obedient
        self._child = 0
        self._said: dict[int, int] = {}
        self._changed = threading.Condition()
        self.running: dict[int, Generate] = {}
        self.cancelled: list[int] = []
        self.alive = False

    def start(self) -> None:
        """Begin to serve."""
        self.alive = True
        if self._ready:
            self.load()

    def stop(self) -> None:
        """End."""
        self.alive = False

    def send(self, child: int, order: Order) -> None:
        """What the daemon does with it."""
        if child != self._child:
            return
        if isinstance(order, Generate):
            with self._changed:
                self.running[order.uid] = order
                self._changed.notify_all()
            if self._answer is not None:
                for piece in self._answer(order):
                    self.say(order.uid, piece)
                self.finish(order.uid)
        elif isinstance(order, Cancel) and order.uid in self.running:
            with self._changed:
                self.cancelled.append(order.uid)
                self._changed.notify_all()
            if self._obedient:
                self.finish(order.uid, "cancelled")

    def load(self) -> None:
        """Report a child that has loaded the model."""
        self._child += 1
        self._report(
            self._child,
            Ready(
                context=self._load.context,
                parallel=self._load.parallel,
                threads=1,
                parameters=0,
                quantisation="none",
                digest="sha256:0",
            ),
        )

    def wait_for(self, count: int, timeout_s: float = 10.0) -> list[int]:
        """Wait until so many requests are running; their uids, oldest first.

        Raises:
            TimeoutError: they are not.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.running) >= count, timeout_s):
                raise TimeoutError(f"{len(self.running)} requests are running, not {count}")
            return list(self.running)

    def say(self, uid: int, text: str, tokens: int = 1) -> None:
        """Report a step that brought text for one request."""
        self._said[uid] = self._said.get(uid, 0) + tokens
        self._report(self._child, Step(deltas=[(uid, text, tokens)]))

    def finish(self, uid: int, reason: str = "stop", *, error: str = "", message: str = "") -> None:
        """Report the end of a request."""
        with self._changed:
            order = self.running.pop(uid)
        prompt = order.prompt or " ".join(content for _, content in order.messages or ())
        self._report(
            self._child,
            Step(
                finished=[
                    Finished(
                        uid,
                        reason,
                        prompt_tokens=len(prompt.split()),
                        completion_tokens=self._said.pop(uid, 0),
                        error=error,
                        message=message,
                    )
                ]
            ),
        )

    def die(self, reason: str = "the test wanted it", *, returns: bool = True) -> None:
        """Report the loss of the child, and a new one if it is to return."""
        with self._changed:
            self.running.clear()
        self._report(self._child, Lost(reason, 0.0))
        if returns:
            self.load()
