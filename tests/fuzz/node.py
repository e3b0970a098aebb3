"""The daemon as a process of its own, so that its memory is its own: all of it but the engine is the real one.

python -m tests.fuzz.node SETTINGS      as JSON
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.config import Settings
from edged.daemon import Daemon
from edged.observe.logs import configure
from tests.fuzz.engine import BusyEngine
from tests.fuzz.publisher import publish
from tests.listener import Listener

#: Small bounds, so that they are met, and a short memory, so that what is kept levels off.
LIMITS: dict[str, Any] = {
    "limits": {"max_queue": 64, "max_queue_per_client": 48, "timeout_s": 3},
    "stream": {"max_pause_s": 1},
    "journal": {"keep_s": 2, "max_size": 8 * 2**20},
    "service": {"metrics_s": 1, "grace_s": 1},
}
_STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class Size:
    """What must not grow: resident memory and journal in KiB, file descriptors, threads."""

    memory_kib: int
    journal_kib: int
    files: int
    threads: int


class FuzzedNode:
    """Starts the process, and looks at it from outside."""

    def __init__(self, directory: Path, host: str, port: int, name: str = "fuzzed") -> None:
        self._name = name
        self.host, self.port, self.base = host, port, f"edged/v1/{name}"
        self._state = directory / "state"
        self.log_file = directory / "node.log"
        settings = {**LIMITS, "node": {"name": name}, "mqtt": {"host": host, "port": port}}
        settings["journal"] = {**LIMITS["journal"], "path": str(self._state / "journal.db")}
        self._settings = json.dumps(settings)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and wait until it is online."""
        with self.log_file.open("ab") as log:
            command = [sys.executable, "-m", __name__, self._settings]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        with Listener(self.host, self.port, f"{self.base}/status") as listener:
            listener.wait(lambda m: m.json()["state"] == "online", explain=self.log)

    def stop(self) -> int:
        """SIGTERM; the exit code. It does not have to run."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def forget(self) -> None:
        """Have everything forgotten that would come back with the next start: the journal, and what the broker kept."""
        self.kill()
        shutil.rmtree(self._state, ignore_errors=True)
        self.log_file.write_bytes(b"")
        for role in ("", "-ctl"):
            publish(self.host, self.port, self.base, [], version=4, client_id=f"edged-{self._name}{role}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def size(self) -> Size:
        assert self._process is not None
        proc = Path(f"/proc/{self._process.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        journal = sum(file.stat().st_size for file in self._state.glob("journal.db*"))
        files, threads = len(list((proc / "fd").iterdir())), len(list((proc / "task").iterdir()))
        return Size(pages * resource.getpagesize() // 1024, journal // 1024, files, threads)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")[-4000:]

    def complaints(self) -> list[str]:
        """The lines of its log that say of a defect: errors, and what is no line of a log at all."""
        lines = self.log_file.read_text(errors="replace").splitlines()
        return [
            line for line in lines if not line.startswith("{") or json.loads(line)["level"] in ("error", "critical")
        ]


def main() -> int:
    settings = Settings(**json.loads(sys.argv[1]))
    configure("info", "json")
    return Daemon(settings, start_engine=BusyEngine).run()  # type: ignore[arg-type]  # not an EngineProcess, as in tests.nodes


if __name__ == "__main__":
    sys.exit(main())
