"""Nodes for tests: the real daemon as a process on the starter model, and the daemon in a thread, scripted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from edged.config import Settings
from edged.daemon import Daemon
from edged.engine.process import EngineProcess
from edged.testing import Answer, ScriptedEngine
from tests.listener import Listener

#: A request that the starter model goes on answering for as long as it may: it counts.
ENDLESS = {"prompt": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,", "raw": True, "temperature": 0, "max_tokens": 2000}
#: Loading the starter model takes a second; on a busy machine some more.
_READY_S = 60.0


class NodeProcess:
    """`edged run` as a user starts it, on the starter model."""

    def __init__(self, directory: Path, host: str, port: int, name: str, **environment: str) -> None:
        self.host, self.port, self.name = host, port, name
        self.base = f"edged/v1/{name}"
        self.log_file = directory / f"{name}.log"
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("EDGED_")},
            "EDGED_MQTT__HOST": host,
            "EDGED_MQTT__PORT": str(port),
            "EDGED_NODE__NAME": name,
            "EDGED_JOURNAL__PATH": str(directory / "state" / "journal.db"),
            "EDGED_SERVICE__GRACE_S": "5",
            # One thread: two wait for each other, and for long where the tests themselves keep a core busy.
            "EDGED_MODELS": '[{"path":"starter","threads":1}]',
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns once its process runs."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", "edged", "run"], env=self._environment, stderr=log)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def engine_pid(self) -> int:
        """The pid of the engine's child process."""
        children = Path(f"/proc/{self.pid}/task").glob("*/children")
        pids = [int(pid) for file in children for pid in file.read_text().split()]
        assert len(pids) == 1, f"the daemon has the children {pids}"
        return pids[0]

    def wait_ready(self) -> None:
        """Wait for the retained card that says `online`."""
        with Listener(self.host, self.port, f"{self.base}/status") as listener:
            listener.wait(lambda m: m.json().get("state") == "online", _READY_S, self.log)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def terminate(self, timeout_s: float = 20.0) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            try:
                self.terminate()
            except subprocess.TimeoutExpired:
                self.kill()
                raise


class ScriptedNode:
    """The daemon in a thread of the test, on a real broker, with a scripted engine.

    Args:
        child: the command line of a scripted child process; then the engine's handle is the real one.
    """

    def __init__(
        self,
        directory: Path,
        host: str,
        port: int,
        name: str,
        *,
        answer: Answer = None,
        engine: Any = None,
        child: tuple[str, ...] = (),
        **sections: Any,
    ) -> None:
        self.host, self.port, self.name = host, port, name
        self.base = f"edged/v1/{name}"
        settings = Settings(
            node={"name": name},
            mqtt={"host": host, "port": port, **sections.pop("mqtt", {})},
            journal={"path": directory / "state" / "journal.db"},
            **sections,
        )
        self.engines: list[ScriptedEngine] = []

        def start_engine(load: Any, report: Any) -> Any:
            if child:
                return EngineProcess(load, report, command=child)
            self.engines.append(ScriptedEngine(load, report, answer=answer, **(engine or {})))
            return self.engines[-1]

        # The starter's file is not opened, but its path is looked up, as for any node.
        self.daemon = Daemon(settings, start_engine=start_engine)
        self._thread = threading.Thread(target=self.daemon.serve, name="node")

    @property
    def engine(self) -> ScriptedEngine:
        return self.engines[0]

    def start(self) -> None:
        """Start it, and wait until it is online (or loading, where its engine is not ready by itself)."""
        self._thread.start()
        with Listener(self.host, self.port, f"{self.base}/status") as listener:
            listener.wait(lambda m: m.json()["state"] in ("online", "loading"))

    def stop(self, timeout_s: float = 15.0) -> None:
        """Drain and end."""
        self.daemon.stop()
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the node does not end"

    def close(self) -> None:
        if self._thread.is_alive():
            self.daemon.stop()
            self._thread.join(1)
            self.daemon.stop("the test is over")
            self._thread.join(15)
            assert not self._thread.is_alive(), "the node does not end"


def wait_until(condition: Any, what: str, timeout_s: float = 15.0) -> None:
    """Poll a condition, bounded."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.01)
