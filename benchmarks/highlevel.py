"""`llama_cpp.Llama`, as a program would use it that takes the library as it comes. A child of `scenarios/highlevel.py`.

The same file, context, threads and sampling parameters as the daemon's. It reads a `Setup` and then one `Load` a line
from its standard input; the streams of a load are generated one after the other, because it can do no other.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from llama_cpp import Llama

from benchmarks.load import Load, Setup


def run(llama: Llama, setup: Setup, load: Load) -> dict[str, list[float]]:
    """For each stream: when it was asked for, and then when each token came; seconds of the monotonic clock."""
    told: dict[str, list[float]] = {}
    for stream in range(load.streams):
        times = [time.monotonic()]
        sampling = {"seed": load.sampler_seed(stream), **setup.sampling}
        tokens: Iterator[Any] = iter(
            llama.create_completion(load.prompt(stream), max_tokens=load.tokens, stream=True, **sampling)
        )
        # It says its end in a piece of its own, without text.
        times.extend(time.monotonic() for one in tokens if one["choices"][0]["text"])
        told[str(stream)] = times
    return told


def main() -> None:
    setup = Setup(**json.loads(sys.stdin.readline()))
    threads = setup.load["threads"]
    llama = Llama(
        setup.load["path"], n_ctx=setup.load["context"], n_threads=threads, n_threads_batch=threads, verbose=False
    )
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(llama, setup, Load(**json.loads(line)))), flush=True)
    llama.close()


if __name__ == "__main__":
    main()
