"""Serves, and another thread writes to standard error as fast as it is read."""

import contextlib
import os
import threading

from tests.engine.children import serves


def flood() -> None:
    with contextlib.suppress(OSError):
        while True:
            os.write(2, b"noise, noise, noise\n" * 4096)


threading.Thread(target=flood, daemon=True).start()
serves.main()
os._exit(0)
