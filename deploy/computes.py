"""Whether llama.cpp, as it was compiled, computes on this machine; where it does not, says why and exits with 1.

pip keeps the wheel that it once made of llama.cpp. That may have been on another processor, or before the compiler got
the flags that it needs here (deploy/llama.h), and then it ends the process by SIGILL as soon as a prompt is computed.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

from edged.engine.files import STARTER, resolve
from edged.engine.protocol import Load
from edged.engine.trial import Work
from edged.tune.child import Trials
from edged.tune.search import TrialFailed

#: So many tokens are computed in every way: as many at once as llama.cpp does, and one after the other.
_WORK = Work("One after the other they came.", prompt=64, depth=32, steps=4, streams=2)


def main() -> int:
    """Load the starter model in a process of its own, and compute a little with it."""
    load = Load(str(resolve(STARTER)), context=256, parallel=2, threads=1)
    try:
        Trials(silence_s=120.0).run({"op": "speed", "load": asdict(load), "work": asdict(_WORK)})
    except TrialFailed as failed:
        print(f"edged: llama.cpp does not compute on this machine: {failed}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
