"""How the node is, in one line, as `systemctl status` shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Status:
    """What is known of the broker and of every model, and whether the node is about to go.

    Args:
        models: their aliases.
        tell: is given the line when something has changed.
    """

    def __init__(self, models: Iterable[str], tell: Callable[[str], object]) -> None:
        self._is_draining = False
        self._broker = "connecting to the broker"
        self._models = dict.fromkeys(models, "loading")
        self._tell = tell

    def broker(self, trouble: str = "") -> None:
        """The broker is connected, or why it is not."""
        self._broker = trouble
        self._tell(self.line)

    def model(self, alias: str, state: str) -> None:
        """A model is `ready`, or why it is not."""
        self._models[alias] = state
        self._tell(self.line)

    def drain(self) -> None:
        """The node is about to go, and stays so. Whoever says so tells the line with it."""
        self._is_draining = True

    @property
    def line(self) -> str:
        """A node that is about to go and a broker that is away come first, then each model."""
        node = ["draining"] if self._is_draining else []
        broker = [self._broker] if self._broker else []
        return " | ".join([*node, *broker, *(f"{alias}: {state}" for alias, state in self._models.items())])
