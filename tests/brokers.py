"""Real brokers for tests: a container where an engine answers, else the local `mosquitto` binary.

Tests take the fixtures of `conftest.py`; this file is how those get their broker.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

#: Set to `local` to use the binary even where a container engine answers.
CHOICE = "EDGED_TEST_BROKER"
IMAGE = "eclipse-mosquitto:2.0.22"
INSTALL = "sudo apt-get install --no-install-recommends mosquitto mosquitto-clients"
#: Where Debian puts daemons, and only root's PATH looks.
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
#: Seconds until a broker must have opened its port, and until it must have ended after SIGTERM.
START_S, STOP_S = 20.0, 10.0
LOG_TAIL = 6000


class NoBrokerError(RuntimeError):
    """There is neither a container engine nor a `mosquitto` binary; the message says what to install."""


class Broker(Protocol):
    """What every test may rest on."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    def log(self) -> str:
        """The tail of what the broker has logged."""


def binary() -> str:
    """The `mosquitto` binary."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:{SBIN}")
    if found is None:
        raise NoBrokerError(f"these tests need a broker, and no mosquitto was found; install it: {INSTALL}")
    return found


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LocalBroker:
    """A `mosquitto` process of the test's own, which it may kill, pause and start again on the same port."""

    host = "127.0.0.1"

    def __init__(self, directory: Path, *, config: Sequence[str] = (), persistence: bool = False) -> None:
        """Nothing runs yet.

        Args:
            directory: an empty directory for configuration, log and database.
            config: further lines of mosquitto.conf; those after the first `listener` concern the one listener.
            persistence: whether sessions and retained messages survive `stop` (and `kill`, as of the last autosave).
        """
        self.port = 0
        self._directory = directory
        #: All that every run has logged; a PUBLISH stands there before its PUBACK leaves.
        self.log_file = directory / "mosquitto.log"
        self._lines = [
            *(["user root"] if os.geteuid() == 0 else []),
            f"log_dest file {self.log_file}",
            "log_type all",
            *(["persistence true", f"persistence_location {directory}/"] if persistence else ["persistence false"]),
            *(["autosave_on_changes true", "autosave_interval 1"] if persistence else []),
        ]
        self._extra = list(config)
        if not any(line.startswith(("allow_anonymous", "password_file")) for line in config):
            self._extra.append("allow_anonymous true")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start on the port of the last time; the first time on a free one, and on another if a race was lost."""
        if self.running:
            raise RuntimeError("this broker runs already")
        deadline = time.monotonic() + START_S
        fixed = self.port
        while not self._try_start(fixed or free_port(), deadline):
            if time.monotonic() > deadline:
                raise RuntimeError(f"mosquitto did not start within {START_S} s; its log:\n{self.log()}")

    def stop(self) -> None:
        """SIGTERM, and wait for the end; harmless when it does not run."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: the kernel still accepts connections, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def log(self) -> str:
        try:
            return self.log_file.read_bytes()[-LOG_TAIL:].decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError(f"this broker does not run: {number.name} has nobody to go to")
        self._process.send_signal(number)

    def _try_start(self, port: int, deadline: float) -> bool:
        """Whether it runs; False where it ended by itself, for example because the port was taken meanwhile."""
        conf = self._directory / "mosquitto.conf"
        conf.write_text("\n".join([*self._lines, f"listener {port} {self.host}", *self._extra, ""]))
        before = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as errors:
            self._process = subprocess.Popen(
                [binary(), "-c", str(conf)], stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._process = None
                return False
            # A connection alone would prove nothing: it may reach the one who took the port.
            if b" running" in self.log_file.read_bytes()[before:] and self._accepts(port):
                self.port = port
                return True
            time.sleep(0.01)
        self.kill()
        return False

    def _accepts(self, port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, port), timeout=1):
            return True
        return False


class ContainerBroker:
    """Mosquitto in a container, by testcontainers."""

    def __init__(self, directory: Path) -> None:
        conf = directory / "mosquitto.conf"
        # To stderr: what goes to stdout stays in a buffer, and nobody sees that the broker has started.
        conf.write_text("listener 1883\nallow_anonymous true\npersistence false\nlog_dest stderr\nlog_type all\n")
        directory.chmod(0o755)  # the container's mosquitto is another user
        with warnings.catch_warnings():
            # testcontainers uses what it has itself deprecated, on import and on start.
            warnings.simplefilter("ignore", DeprecationWarning)
            # Imported here: it is slow, and with EDGED_TEST_BROKER=local nobody needs it.
            from testcontainers.community.mqtt import MosquittoContainer
            from testcontainers.core.config import testcontainers_config

            # Its janitor is a container and an image more; here the fixture cleans up.
            testcontainers_config.ryuk_disabled = True
            self._container = MosquittoContainer(IMAGE)
            try:
                self._container.start(str(conf))
                self.host: str = self._container.get_container_host_ip()
                self.port = int(self._container.get_exposed_port(MosquittoContainer.MQTT_PORT))
            except BaseException:
                self.stop()
                raise

    def log(self) -> str:
        out, err = self._container.get_logs()
        text: str = (out + err)[-LOG_TAIL:].decode(errors="replace")
        return text

    def stop(self) -> None:
        self._container.stop()


def engine_answers() -> bool:
    """Whether a container engine can be asked for a broker.

    Asked by hand: docker's own client leaves its socket open where nobody answers, and warnings are errors here.
    """
    from testcontainers.core.docker_client import get_docker_host

    url = urlsplit(get_docker_host() or "unix:///var/run/docker.sock")
    local = url.scheme == "unix"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX if local else socket.AF_INET) as engine:
        engine.settimeout(5)
        engine.connect(url.path if local else (url.hostname or "", url.port or 2375))
        engine.sendall(b"GET /_ping HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
        return b" 200 " in engine.recv(64)
    return False


@contextlib.contextmanager
def shared_broker() -> Iterator[Broker]:
    """A broker for a whole session, from a container engine or the local binary.

    Raises:
        NoBrokerError: there is neither.
    """
    with tempfile.TemporaryDirectory(prefix="edged-broker-") as name:
        container = _container_broker(Path(name)) if os.environ.get(CHOICE) != "local" and engine_answers() else None
        if container is None:
            with local_broker(Path(name)) as broker:
                yield broker
        else:
            try:
                yield container
            finally:
                container.stop()


def _container_broker(directory: Path) -> ContainerBroker | None:
    """None where the engine answers but cannot run the image (no registry in reach, say): a local one will do."""
    try:
        return ContainerBroker(directory)
    except Exception:
        if shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:{SBIN}") is None:
            raise
        return None


@contextlib.contextmanager
def local_broker(directory: Path, *, config: Sequence[str] = (), persistence: bool = False) -> Iterator[LocalBroker]:
    """A started broker process that ends with the block.

    Raises:
        NoBrokerError: there is no binary.
    """
    broker = LocalBroker(directory, config=config, persistence=persistence)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
