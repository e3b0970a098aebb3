"""Fuzz for as long as one likes: `python -m tests.fuzz --seconds 3600`.

The decoders have the first half of the time, the running daemon the second. What breaks a promise is told, as small as
could be made of it, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from tests.brokers import local_broker
from tests.fuzz.campaign import campaign
from tests.fuzz.decoders import TARGETS
from tests.fuzz.mutation import Fuzzer
from tests.fuzz.node import FuzzedNode
from tests.fuzz.siege import Siege

#: Batches that Hypothesis thinks up in one go; it remembers them all.
_ROUND = 200


def _decoders(seconds: float, seed: int) -> None:
    for name, target in TARGETS.items():
        fuzzer = Fuzzer(target, Random(seed))
        fuzzer.run(more=_until(time.monotonic() + seconds / len(TARGETS)))
        _tell(f"{name}: {fuzzer.executions} inputs, {len(fuzzer.corpus)} of them kept, {len(fuzzer.places)} places")


def _daemon(seconds: float, seed: int) -> None:
    more = _until(time.monotonic() + seconds)
    with tempfile.TemporaryDirectory(prefix="edged-fuzz-") as directory, local_broker(Path(directory)) as broker:
        node = FuzzedNode(Path(directory), broker.host, broker.port)
        siege = Siege(node)
        try:
            while more():
                campaign(siege, count=_ROUND, number=seed, more=more)
                seed += 1
            siege.rest()
        finally:
            node.kill()
    first, last = siege.sizes[len(siege.sizes) // 4], siege.sizes[-1]
    _tell(f"daemon: {siege.fired} messages in {len(siege.sizes)} batches; {first}, in the end {last}")
    assert not siege.growth(), siege.growth()


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _until(end: float) -> Callable[[], bool]:
    return lambda: time.monotonic() < end


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the decoders and the daemon.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, in all; default: %(default)s")
    parser.add_argument("--seed", type=int, help="the same one tries the same inputs; default: another each time")
    parser.add_argument("--only", choices=("decoders", "daemon"), help="one of the two")
    chosen = parser.parse_args(arguments)
    seed = secrets.randbelow(2**32) if chosen.seed is None else chosen.seed
    _tell(f"seed {seed}")
    parts = {"decoders": _decoders, "daemon": _daemon}
    names = [chosen.only] if chosen.only else list(parts)
    failed = False
    for name in names:
        try:
            parts[name](chosen.seconds / len(names), seed)
        except Exception:  # noqa: BLE001 - whatever it is, it is told, and the other part has its turn
            failed = True
            traceback.print_exc()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
