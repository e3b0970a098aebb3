"""What every child process of the engine does first."""

from __future__ import annotations

import ctypes
import signal

#: prctl(2): the signal that this process gets when the thread that started it ends.
_PR_SET_PDEATHSIG = 1


def belong_to_parent() -> None:
    """End when the parent ends, however it ends; and leave a Ctrl-C in the terminal to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
