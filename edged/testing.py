"""For tests, the project's own and its users': an engine that says what the test wants, without a model."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable

from edged.engine.process import Lost
from edged.engine.protocol import Cancel, Finished, Generate, Hold, Load, Order, Ready, Release, Report, Step

#: What a scripted engine answers with, piece by piece; None = nothing by itself, the test speaks for it.
Answer = Callable[[Generate], Iterable[str]] | None


class ScriptedEngine:
    """Takes the place of `EngineProcess`: no process and no model, every report comes when the test says so.

    Each piece of an answer counts as one token and one step. The tokens of a request have the ids 0, 1, 2, …; one that
    goes on after a death begins with the number of tokens that it has, as an engine does. Methods may be called from
    any thread.

    Attributes:
        running: the requests that were given to it and have not ended.
        cancelled: the uids that it was asked to cancel, in order.
        held: the uids of those running that it was asked to hold and not to release since. It does not keep a test
            from speaking for them: an engine may have text on its way, too.
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
            answer: gives the pieces of each answer, from its beginning; they are all reported as soon as the request
                comes, without those that were given out before.
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
        self.held: set[int] = set()
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
                self._said[order.uid] = len(order.generated)
                self._changed.notify_all()
            if self._answer is not None:
                for piece in itertools.islice(self._answer(order), len(order.generated), None):
                    self.say(order.uid, piece)
                self.finish(order.uid)
        elif isinstance(order, Cancel) and order.uid in self.running:
            with self._changed:
                self.cancelled.append(order.uid)
                self._changed.notify_all()
            if self._obedient:
                self.finish(order.uid, "cancelled")

        elif isinstance(order, Hold | Release) and order.uid in self.running:
            with self._changed:
                (self.held.add if isinstance(order, Hold) else self.held.discard)(order.uid)
                self._changed.notify_all()

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
        said = self._said.get(uid, 0)
        self._said[uid] = said + tokens
        self._report(self._child, Step(deltas=[(uid, text, list(range(said, said + tokens)))]))

    def finish(self, uid: int, reason: str = "stop", *, error: str = "", message: str = "") -> None:
        """Report the end of a request."""
        with self._changed:
            order = self.running.pop(uid)
            self.held.discard(uid)
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

    def die(
        self,
        reason: str = "the test wanted it",
        *,
        returns: bool = True,
        outside: bool = False,
        error: str = "",
    ) -> None:
        """Report the loss of the child, and a new one if it is to return.

        Args:
            reason: for the log, and for those who hear that the model cannot be loaded.
            returns: whether the next child is ready at once; else `load` makes it so.
            outside: it was killed from outside, by no fault of what it was generating.
            error: why the model cannot be loaded, `out_of_memory` or `unavailable`; empty = it had been loaded.
        """
        with self._changed:
            dead, self._child = self._child, self._child + 1  # orders that are under way to it reach nobody
            self.running.clear()
            self.held.clear()
            self._said.clear()
        self._report(dead, Lost(reason, 0.0, error, outside))
        if returns:
            self.load()
