"""The engine's own process, with a stopwatch around every call into llama.cpp. A child of `scenarios/overhead.py`.

It is `edged.engine.worker` in everything: only the functions of `llama_cpp` are replaced, before the worker looks them
up, by ones that add their time up. So whatever the worker calls is counted, ctypes' own conversion of the arguments
included, which is part of a call. The rest of a step is the engine's Python: planning, filling the batch, text, report.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp

#: The type of all functions that ctypes finds in a library.
_FUNCTION = type(llama_cpp.llama_decode)


class Stopwatch:
    """Seconds in llama.cpp so far, and where they stood whenever a batch came."""

    def __init__(self) -> None:
        self.spent = 0.0
        self.decodes: list[tuple[float, float, int]] = []  # when, spent until then, tokens in the batch

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time added up."""

        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            self.spent += time.perf_counter() - started
            return result

        return call

    def decode(self, function: Callable[..., int]) -> Callable[..., int]:
        """`llama_decode`, the beginning of each call noted as well."""
        timed = self.timed(function)

        def call(context: Any, batch: Any) -> int:
            self.decodes.append((time.perf_counter(), self.spent, batch.n_tokens))
            return int(timed(context, batch))

        return call

    def install(self) -> None:
        """Put it around all functions of `llama_cpp`."""
        for name in dir(llama_cpp):
            function = getattr(llama_cpp, name)
            if name == "llama_decode":
                setattr(llama_cpp, name, self.decode(function))
            elif isinstance(function, _FUNCTION):
                setattr(llama_cpp, name, self.timed(function))


def main(file: str, *handles: str) -> int:
    """Serve as the engine does, with the handles that it is given; then write what was noted."""
    stopwatch = Stopwatch()
    stopwatch.install()
    from edged.engine import worker  # noqa: PLC0415 - only now: what it imports must see the stopwatch

    code = worker.main(["worker", *handles])
    Path(file).write_text(json.dumps(stopwatch.decodes), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
