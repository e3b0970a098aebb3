"""The parts that a storm breaks, all of them real: a broker, the daemon, its engine, and the network between them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.brokers import LocalBroker, local_broker
from tests.chaos.proxy import HOST, Proxy
from tests.nodes import NodeProcess

ROOT = Path(__file__).resolve().parents[2]
#: Mosquitto drops what waits for a session beyond 1,000 messages; a storm is to lose them in its own ways only.
BROKER_CONFIG = ("max_queued_messages 0", "allow_anonymous true")
KEEPALIVE_S = 5


class Node(NodeProcess):
    """The daemon on the starter model, which may be killed, stopped and started again."""

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.impatient", "run"], cwd=ROOT, env=self._environment, stderr=log
            )

    @property
    def ended(self) -> int | None:
        """The exit code; None while it runs."""
        return None if self._process is None else self._process.poll()

    def engine(self) -> int | None:
        """The engine's pid; None while there is none."""
        try:
            children = [
                int(pid)
                for file in Path(f"/proc/{self.pid}/task").glob("*/children")
                for pid in file.read_text().split()
            ]
        except OSError:  # a thread, or all of it, has just ended
            return None
        return children[0] if len(children) == 1 else None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        if self.ended is None:
            self.signal(signal.SIGCONT)
        super().close()


def resident_kib(pid: int, which: str = "VmRSS") -> int:
    """Resident memory of one process, KiB: now (`VmRSS`), or the most that it ever was (`VmHWM`)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(which + ":"):
            return int(line.split()[1])
    raise AssertionError(f"the process {pid} has no {which}")


class Stage:
    """All parts, and what can be done to them."""

    def __init__(self, broker: LocalBroker, proxy: Proxy, node: Node, database: Path) -> None:
        self.broker, self.proxy, self.node = broker, proxy, node
        self._database = database

    def restart_broker(self, *, forget: bool) -> None:
        """Start a killed broker, with what it had last saved of sessions and messages, or with nothing."""
        if forget:
            self._database.unlink(missing_ok=True)
        self.broker.start()

    def stop_engine(self, pid: int) -> Callable[[], None]:
        """SIGSTOP to the engine; call what is returned for SIGCONT."""
        os.kill(pid, signal.SIGSTOP)

        def go_on() -> None:
            if self.node.engine() == pid:  # else it is gone, and the number may be another's
                os.kill(pid, signal.SIGCONT)

        return go_on


@contextmanager
def stage(directory: Path, name: str = "storm", **environment: str) -> Iterator[Stage]:
    """Everything started, the node on its way online; everything ends with the block."""
    broker_directory = directory / "broker"
    broker_directory.mkdir()
    with ExitStack() as stack:
        broker = stack.enter_context(local_broker(broker_directory, config=BROKER_CONFIG, persistence=True))
        proxy = stack.enter_context(Proxy(broker.port))
        node = Node(directory, HOST, proxy.port, name, **{"EDGED_MQTT__KEEPALIVE_S": str(KEEPALIVE_S), **environment})
        stack.callback(node.close)
        node.start()
        yield Stage(broker, proxy, node, broker_directory / "mosquitto.db")
