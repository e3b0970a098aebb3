"""A machine that is made up: what trials would find on it, without llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edged.tune.child import Trials
from edged.tune.search import TrialFailed
from tests.engine import gguf

#: llama.cpp's numbers of file types.
KINDS = {"Q4_1": 3, "Q4_0": 2, "Q8_0": 7, "IQ4_NL": 25}


def model_file(path: Path, kind: str, *, size: int = 4096) -> Path:
    """A file that says that it is a model of this type."""
    header = gguf.header([("general.architecture", "llama"), ("general.file_type", gguf.u32(KINDS[kind]))])
    path.write_bytes(header.ljust(size, b"\0"))
    return path


class Machine(Trials):
    """Answers orders by itself.

    Args:
        speed: tokens per second with a `Load` (as a dictionary); may raise `TrialFailed`.
        perplexities: by type, as the file's name has it.
        types: that this CPU could be served with.

    Attributes:
        orders: all that came.
    """

    def __init__(
        self,
        speed: Callable[[dict[str, Any]], float] = lambda _: 100.0,
        perplexities: dict[str, float] | None = None,
        types: tuple[str, ...] = ("Q4_0", "Q8_0"),
    ) -> None:
        super().__init__(("/nonexistent",))
        self._speed = speed
        self._perplexities = perplexities or {}
        self._types = types
        self.orders: list[dict[str, Any]] = []

    def run(self, order: dict[str, Any]) -> dict[str, Any]:
        self.orders.append(order)
        if order["op"] == "requantise":
            model_file(Path(order["target"]), order["type"])
            return {}
        name = Path(order["load"]["path"]).name
        if order["op"] == "perplexity":
            for kind, value in self._perplexities.items():
                if f".{kind}." in name:
                    return {"perplexity": value}
            raise TrialFailed("it crashed")
        speed = self._speed(order["load"])
        return {
            "prefill": speed,
            "decode_one": speed,
            "decode_many": speed,
            "streams": 4,
            "memory": 1_000_000,
            "parameters": 4096,
            "types": list(self._types),
        }

    def tried(self, key: str) -> list[Any]:
        """Values of a setting, in the order of the trials."""
        return [order["load"][key] for order in self.orders if order["op"] == "speed"]
