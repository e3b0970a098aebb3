"""What Ctrl-C and a kill do to our scripts: they unwind the stack, so that no child is left behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def signals_end_the_block() -> None:
    """From now on SIGTERM and SIGHUP raise SystemExit with the shell's code for them, and SIGINT KeyboardInterrupt.

    SIGINT is said as well, because shells start background jobs with it ignored, and Python leaves it so.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))


@contextmanager
def held() -> Iterator[None]:
    """Hold these signals back until the block is over: for starting a child AND noting who is to stop it.

    Python's handlers do it, and not the process's mask, which the child would inherit.
    """
    caught: list[int] = []
    before = {number: signal.signal(number, lambda number, _frame: caught.append(number)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])
