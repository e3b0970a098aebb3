"""A broker and a daemon as child processes, for `make demo` and `make run`.

Both live exactly as long as the `with` block that started them; nothing is installed, and nothing outside the given
directory is written.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.signals import held, signals_end_the_block
from edged.wire import DEFAULT_ROOT

__all__ = ["Child", "StackError", "broker", "daemon", "find", "shown", "signals_end_the_block"]

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
#: The broker's usual port.
MQTT_PORT = 1883
#: How long the broker may take to open its port, seconds.
BROKER_S = 15.0
#: How long a child may take to end after SIGTERM before it is killed, seconds.
STOP_S = 15.0
#: How much of a log is shown when something fails, lines.
TAIL_LINES = 30
#: How often a wait looks whether the children still live, seconds.
POLL_S = 0.05


class StackError(Exception):
    """Something did not start, or ended by itself; the message says what, with the end of its log."""


class Child:
    """A child process in a session of its own, so that a terminal's Ctrl-C reaches us alone and we end it in order.

    Args:
        log: where its output goes; None leaves it on our own stderr.
    """

    def __init__(
        self, name: str, command: list[str], *, log: Path | None, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = log
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(log.open("ab")) if log else sys.stderr
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=ROOT, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has written so far; empty where that went to the terminal."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log else ""

    def check(self) -> None:
        """Raise StackError when it is gone."""
        if not self.alive:
            raise self.error(f"ended by itself with code {self._process.returncode}")

    def error(self, what: str) -> StackError:
        """A StackError about this child, with the end of its log."""
        tail = self.log.splitlines()[-TAIL_LINES:]
        return StackError("\n".join([f"{self.name} {what}", *(f"  | {line}" for line in tail)]))

    def stop(self) -> None:
        """SIGTERM and a bounded wait, then SIGKILL to its whole session; a second Ctrl-C is that at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt, SystemExit):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def find(program: str) -> str:
    """The path of a program, which may be where only root's PATH looks.

    Raises:
        StackError: it is not installed.
    """
    found = shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")
    if found is None:
        raise StackError(
            f"{program} is not installed; this installs it: deploy/packages.sh mosquitto mosquitto-clients"
        )
    return found


def broker_config(text: str, port: int) -> str:
    """The project's mosquitto.conf with the local listener on another port, and with nothing written to disk.

    Raises:
        StackError: the text has no local listener.
    """
    usual = f"\nlistener {MQTT_PORT} {HOST}\n"
    if usual not in text:
        raise StackError(f"mosquitto.conf has no line {usual.strip()!r}, which a broker of our own is made from")
    return text.replace(usual, f"\nlistener {port} {HOST}\n").replace("\npersistence true\n", "\npersistence false\n")


@contextlib.contextmanager
def broker(directory: Path, *, prefer: int | None = None) -> Iterator[tuple[Child, int]]:
    """Run mosquitto with the project's configuration, on the port `prefer` if it is free, else on any free one.

    Yields:
        The broker and its port, once it accepts connections.

    Raises:
        StackError: it does not start.
    """
    text = (ROOT / "mosquitto.conf").read_text(encoding="utf-8")
    config, log = directory / "mosquitto.conf", directory / "mosquitto.log"
    ports = [prefer] if prefer and _is_free(prefer) else []
    # Another process may take a free port before mosquitto does: then the next one.
    for port in [*ports, *(_free_port() for _ in range(3))]:
        config.write_text(broker_config(text, port), encoding="utf-8")
        log.unlink(missing_ok=True)
        with contextlib.ExitStack() as stack:
            with held():
                child = Child("the broker (mosquitto)", [find("mosquitto"), "-c", str(config)], log=log, env=os.environ)
                stack.callback(child.stop)
            if _opens(child):
                yield child, port
                return
    raise child.error("does not start")


def _opens(broker: Child) -> bool:
    """Wait until the broker runs; False where it ended instead."""
    deadline = time.monotonic() + BROKER_S
    while broker.alive:
        # A connection would prove less: it might reach whoever took the port.
        if " running\n" in broker.log:
            return True
        if time.monotonic() > deadline:
            raise broker.error(f"was not running after {BROKER_S:.0f} s")
        time.sleep(POLL_S)
    return False


@contextlib.contextmanager
def daemon(directory: Path, *, node: str, port: int, log: Path | None, **environment: str) -> Iterator[Child]:
    """Run `edged run` as `node` against the broker on `port`; it may not be online yet.

    Settings of the caller's environment (EDGED_MODELS, EDGED_CONFIG, …) count, except for those of the broker; those of
    `environment` count before them.
    """
    empty = directory / "edged.toml"
    empty.touch()
    # The machine's own /etc/edged is another service's business, unless somebody names it.
    env = {
        "EDGED_CONFIG": str(empty),
        "EDGED_SERVICE__GRACE_S": "2",
        "EDGED_JOURNAL__PATH": str(directory / "journal.db"),
    }
    env |= {name: value for name, value in os.environ.items() if not name.startswith("EDGED_MQTT__")}
    env |= environment
    env |= {
        "EDGED_MQTT__HOST": HOST,
        "EDGED_MQTT__PORT": str(port),
        "EDGED_MQTT__TLS": "false",
        "EDGED_MQTT__TOPIC_ROOT": DEFAULT_ROOT,
        "EDGED_NODE__NAME": node,
        "PYTHONUNBUFFERED": "1",
    }
    with contextlib.ExitStack() as stack:
        with held():
            child = Child("the daemon (edged run)", [sys.executable, "-m", "edged", "run"], log=log, env=env)
            stack.callback(child.stop)
        yield child


def shown(command: list[str]) -> str:
    """A command as one would type it."""
    return shlex.join([Path(command[0]).name, *command[1:]])


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as mosquitto does
        probe.bind((HOST, port))
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
