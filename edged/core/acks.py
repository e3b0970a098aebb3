"""The PUBACKs for what came in: in the order of arrival, each as soon as what it stands for is safe."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class _Pending:
    ack: object
    after: int | None


class Acks:
    """Those that wait. MQTT wants them in order (MQTT 5.0, 4.6), so the one that is not ready holds up the others."""

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()

    def add(self, ack: object | None, *, after: int | None) -> None:
        """Add one.

        Args:
            ack: None where there is none to send, at QoS 0.
            after: the number of the record that has to be safe before; None where it need not wait.
        """
        if ack is not None:
            self._pending.append(_Pending(ack, after))

    def safe(self, number: int) -> None:
        """All records up to this one are safe, or given up."""
        for pending in self._pending:
            if pending.after is not None and pending.after <= number:
                pending.after = None

    def given_up(self, number: int, *, instead: int | None) -> None:
        """This record will never be; what waited for it waits for another one, or for none."""
        for pending in self._pending:
            if pending.after == number:
                pending.after = instead

    def ready(self) -> Iterator[object]:
        """Take out those that can leave."""
        while self._pending and self._pending[0].after is None:
            yield self._pending.popleft().ack

    def clear(self) -> None:
        """The connection that they belonged to is gone."""
        self._pending.clear()
