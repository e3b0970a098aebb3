"""What the threads of the connections and of the engines have to tell, waiting for the main thread."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass

from edged.core.events import Synced
from edged.engine import protocol
from edged.engine.process import Lost
from edged.mqtt.happenings import Arrived, Confirmed, Ended, Happening, Ready, Refused

#: Messages that came in and wait for the core: so many bytes, a message counted with so much besides its payload.
_MOST_BYTES, _MESSAGE_BYTES = 4 * 1024 * 1024, 1024
#: How long the connection's thread rests while they are more, seconds.
_FLOOD_PAUSE_S = 0.001


@dataclass(frozen=True, slots=True)
class FromEngine:
    """A report of one model's child process, with the number of the child."""

    model: str
    child: int
    report: protocol.Report | Lost


@dataclass(frozen=True, slots=True)
class Control:
    """What the connection for control messages tells."""

    happening: Happening


@dataclass(frozen=True, slots=True)
class Stop:
    """The daemon is asked to end."""

    why: str


#: What is decided upon one by one; confirmations are taken in together.
Single = Ready | Arrived | Refused | Ended | Control | FromEngine | Stop | Synced
Item = Single | Confirmed


@dataclass(slots=True)
class Flow:
    """What came in on one connection and waits for the core.

    Attributes:
        posted: bytes; the connection's thread alone writes it.
        handled: bytes; the main thread alone writes it.
    """

    posted: int = 0
    handled: int = 0

    @property
    def waiting(self) -> int:
        """Bytes."""
        return self.posted - self.handled

    def post(self, happening: Happening) -> None:
        """Count what is put in."""
        self.posted += _cost(happening)

    def handle(self, happening: Happening) -> None:
        """Count what was taken out."""
        self.handled += _cost(happening)


class Inbox:
    """Any thread puts in; the main thread takes out, in the same order.

    Attributes:
        requests: what came on the connection for requests.
        controls: what came on the one for control messages.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._is_open = True
        self.requests, self.controls = Flow(), Flow()

    def put(self, item: Item) -> None:
        """Put something in, and never wait; a handler of signals may do it as well."""
        self._queue.put(item)

    def on_request(self, happening: Happening) -> None:
        """Put in what the connection for requests tells."""
        self._post(happening, self.requests, happening)

    def on_control(self, happening: Happening) -> None:
        """Put in what the connection for control messages tells."""
        self._post(Control(happening), self.controls, happening)

    def of_engine(self, model: str) -> Callable[[int, protocol.Report | Lost], None]:
        """What puts in the reports of a model's children."""
        return lambda child, report: self.put(FromEngine(model, child, report))

    def get(self, timeout_s: float | None) -> tuple[list[Confirmed], Single | None]:
        """Take out the next one, and the confirmations before it.

        Args:
            timeout_s: how long to wait where there is nothing, seconds; None = until something comes.

        Returns:
            The confirmations, and what came behind them; None where nothing did.
        """
        confirmed: list[Confirmed] = []
        try:
            item = self._queue.get(timeout=timeout_s)
            while isinstance(item, Confirmed):
                confirmed.append(item)
                item = self._queue.get_nowait()
        except queue.Empty:
            return confirmed, None
        return confirmed, item

    def close(self) -> None:
        """Hold no connection's thread up any longer."""
        self._is_open = False

    def _post(self, item: Item, flow: Flow, happening: Happening) -> None:
        """From a connection's thread. A flood waits here, and so in the broker, instead of in our memory."""
        while isinstance(happening, Arrived) and flow.waiting > _MOST_BYTES and self._is_open:
            time.sleep(_FLOOD_PAUSE_S)
        flow.post(happening)
        self.put(item)


def _cost(happening: Happening) -> int:
    return len(happening.message.payload) + _MESSAGE_BYTES if isinstance(happening, Arrived) else 0
