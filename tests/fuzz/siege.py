"""A node under fire, and what is asked of it after every batch."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

from edged.wire import NodeMetrics, parse_status
from tests.fuzz.engine import ANSWER, QUICK
from tests.fuzz.node import FuzzedNode, Size
from tests.fuzz.publisher import publish
from tests.fuzz.publishes import Message
from tests.listener import Listener, Received

#: Seconds within which a sensible request is answered, however much nonsense came before it. Once that has not been so,
#: less: a smaller batch that does it is to be found, and there are many to try.
_ANSWER_S, _IMPATIENT_S = 20.0, 5.0
#: How often it is seen whether a node that does not answer still runs, seconds.
_LOOK_S = 0.5
#: Seconds within which everything that was accepted has ended: the node's `limits.timeout_s`, and some.
_REST_S = 30.0
#: What may be held on to at the moment of looking: the allocator's, the journal's and the sockets' ups and downs.
_MEMORY_KIB, _JOURNAL_KIB, _FILES, _THREADS = 6 * 1024, 12 * 1024, 4, 1


class SiegeError(AssertionError):
    """The node does not keep a promise; the message has the end of its log."""


class Siege:
    """Fires at a node, which it starts again where it has died, so that the next batch tells of itself alone."""

    def __init__(self, node: FuzzedNode) -> None:
        self._node = node
        self._numbers = itertools.count(1)
        self._patience_s = _ANSWER_S
        self.fired = 0
        self.dismissed = 0
        self.sizes: list[Size] = []

    def fire(self, messages: Sequence[Message], *, version: int) -> None:
        """Publish a batch, and see whether the node is as it was.

        Raises:
            SiegeError: it is not.
        """
        node = self._node
        if not node.running:
            node.start()
        self.fired += len(messages)
        self.dismissed += not publish(node.host, node.port, node.base, messages, version=version)
        self.ask()
        self.sizes.append(node.size())
        if complaints := node.complaints():
            node.log_file.write_bytes(b"")
            raise SiegeError("the log tells of a defect:\n" + "\n".join(complaints)[:8000])

    def ask(self) -> None:
        """A sensible request is answered, unless for the moment there is no room, which is said."""
        node = self._node
        deadline = time.monotonic() + self._patience_s
        with Listener(node.host, node.port, f"{node.base}/reply/check/#", f"{node.base}/status") as listener:
            final: dict[str, Any] = {}
            while final.get("finish_reason") != "stop":
                final = self._answer(listener, f"n{next(self._numbers)}", deadline)
                if final["finish_reason"] == "error" and not final["error"]["retryable"]:
                    raise SiegeError(f"refused: {final}")
            if final["text"] != "".join(ANSWER):
                raise SiegeError(f"answered with {final['text']!r}")
            status = parse_status(listener.wait(lambda m: m.topic.endswith("/status")).payload)
            if status.state not in ("online", "busy") or not status.models:
                raise SiegeError(f"the card says {status}")

    def _answer(self, listener: Listener, id_: str, deadline: float) -> dict[str, Any]:
        """Ask once; the final. A node that does not answer is ended, so that the next batch has another."""
        node = self._node
        listener.publish(f"{node.base}/req/check/{id_}", QUICK)
        while True:
            try:
                return listener.final(id_, _LOOK_S)
            except AssertionError as error:
                if node.running and time.monotonic() < deadline:
                    continue
                self._patience_s = _IMPATIENT_S
                state = "runs" if node.running else "has ended"
                log = node.log()
                node.forget()
                raise SiegeError(f"the node {state} and does not answer: {error}\n{log}") from None

    def rest(self) -> None:
        """Everything that was accepted ends, and the node ends in order.

        Raises:
            SiegeError: it does not.
        """
        node = self._node

        def idle(message: Received) -> bool:
            figures = NodeMetrics.model_validate_json(message.payload)
            return figures.running == figures.waiting == 0 and figures.accepted == sum(figures.finished.values())

        with Listener(node.host, node.port, f"{node.base}/metrics") as listener:
            try:
                listener.wait(idle, _REST_S)
            except AssertionError as error:
                raise SiegeError(f"what was accepted does not end: {error}\n{node.log()}") from None
        if (code := node.stop()) != 0 or node.complaints():
            raise SiegeError(f"it ended with {code}:\n{node.log()}")

    def growth(self) -> str:
        """What has grown between the first half, warm-up apart, and the last quarter; empty where nothing has."""
        count = len(self.sizes)
        before, after = self.sizes[count // 4 : count // 2], self.sizes[count * 3 // 4 :]
        grown = []
        for name, room in (
            ("memory_kib", _MEMORY_KIB), ("journal_kib", _JOURNAL_KIB), ("files", _FILES), ("threads", _THREADS)
        ):  # fmt: skip
            first, last = max(getattr(s, name) for s in before), max(getattr(s, name) for s in after)
            if last > first + room:
                grown.append(f"{name} from {first} to {last}")
        return ", ".join(grown)
