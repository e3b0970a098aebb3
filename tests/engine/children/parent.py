"""A daemon in the small: loads the model of its first argument, says the child's pid, and waits to be killed."""

import signal
import sys

from edged.engine.process import EngineProcess, Lost
from edged.engine.protocol import Load, Ready, Report


def report(_child: int, what: Report | Lost) -> None:
    if isinstance(what, Ready):
        sys.stdout.write(f"{engine.pid}\n")
        sys.stdout.flush()


engine = EngineProcess(Load(path=sys.argv[1], context=256, parallel=1, threads=1, digest="known"), report)
engine.start()
signal.pause()
