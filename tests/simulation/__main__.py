"""`python -m tests.simulation`: worlds for as long as there is time, or one of them with all that happens in it."""

from __future__ import annotations

import argparse
import itertools
import sys
import time

from tests.simulation.world import World


def main() -> int:
    """The exit code: 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--seconds", type=float, default=60.0, help="run worlds for so long (default: %(default)s)")
    what.add_argument("--seed", type=int, help="run this world alone, and print what happens in it")
    parser.add_argument("--first", type=int, default=1_000_000, help="the first seed (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return 0 if _one(arguments.seed) else 1
    return _many(arguments.seconds, arguments.first)


def _one(seed: int) -> bool:
    world = World(seed, trace=True)
    error = _failure(world)
    print(*world.checks.trace or (), sep="\n")  # noqa: T201 - it is a command
    print(f"seed {seed}: {error or 'all promises kept'}")  # noqa: T201
    return error is None


def _failure(world: World) -> str | None:
    try:
        world.run()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return f"{type(error).__name__}: {error}"
    return None


def _many(seconds: float, first: int) -> int:
    end = time.monotonic() + seconds
    count = failed = 0
    for seed in itertools.count(first):
        if time.monotonic() >= end:
            break
        count += 1
        if (error := _failure(World(seed))) is not None:
            failed += 1
            print(f"python -m tests.simulation --seed {seed}  # {error[:300]}", flush=True)  # noqa: T201
    print(f"{count} worlds from seed {first} on, {failed} of them break a promise")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
