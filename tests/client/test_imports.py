"""A consumer needs neither llama.cpp nor anything else of the daemon's."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
for name in ("llama_cpp", "numpy", "jinja2", "structlog", "typer", "pydantic_settings"):
    sys.modules[name] = None  # as if it were not installed
import edged
from edged import AsyncClient, Client
from edged.client import ask
assert edged.Client is Client
mine = {name.split(".")[1] for name in sys.modules if name.startswith("edged.")}
assert mine == {"client", "wire"}, mine
Client(host="localhost")
AsyncClient(host="localhost")
"""


def test_the_clients_load_without_the_daemons_packages() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
