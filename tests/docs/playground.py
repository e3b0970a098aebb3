"""A broker, a node, and a shell in which the pages' commands mean these: what a reader has who follows the pages."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from tests.brokers import LocalBroker, local_broker
from tests.docs import shape
from tests.docs.pages import ROOT
from tests.listener import Listener, Received

#: The node that all pages speak of.
NODE = "edge"
#: Generous: the machine may be busy. Seconds.
ONLINE_S, COMMAND_S, HEARD_S, STOP_S = 90.0, 150.0, 90.0, 20.0
#: One thread does not suffer from a busy machine as two that wait for each other do; short answers save time.
MODELS = [{"path": "starter", "threads": 1, "context": 2048, "defaults": {"max_tokens": 24, "temperature": 0}}]


class Listening:
    """A command that runs in the background."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path) -> None:
        self._process = process
        self._out = out

    def heard(self, shown: str) -> None:
        """Wait until it has printed what a page shows.

        Raises:
            AssertionError: it did not.
        """
        deadline = time.monotonic() + HEARD_S
        while not shape.shows(shown, self.printed()):
            if time.monotonic() > deadline:
                raise AssertionError(f"the page shows\n{shown}\n\nbut it was\n{self.printed()}")
            time.sleep(0.05)

    def printed(self) -> str:
        """The whole lines so far."""
        text = self._out.read_text(encoding="utf-8", errors="replace")
        return text[: text.rfind("\n") + 1]

    def stop(self) -> None:
        end(self._process)


class Playground:
    """Runs commands as the pages have them, against a broker and a node of its own.

    `mosquitto_pub`, `mosquitto_sub`, `mosquitto_rr`, `edged` and `python` are found in a directory in front of PATH,
    where little scripts add the broker's port. So the pages can use the defaults. `mosquitto_pub` publishes at QoS 1:
    when the command ends, the broker has the message.
    """

    def __init__(self, directory: Path, broker: LocalBroker, broker_log: Path, replies: Listener) -> None:
        """Nothing runs yet.

        Args:
            directory: for all files.
            broker: runs already.
            broker_log: where it tells who has subscribed.
            replies: hears all that the node replies.
        """
        self.host, self.port = broker.host, broker.port
        self._replies = replies
        self._settled = 0
        self._directory = directory
        self._broker_log = broker_log
        self._listeners = 0
        programs = directory / "bin"
        programs.mkdir()
        for name in ("mosquitto_pub", "mosquitto_sub", "mosquitto_rr"):
            found = shutil.which(name)
            assert found is not None, f"{name} is missing; this installs it: apt-get install mosquitto-clients"
            more = {"mosquitto_sub": ' ${DOCS_CLIENT_ID:+-i "$DOCS_CLIENT_ID"}', "mosquitto_pub": " -q 1"}.get(name, "")
            _script(programs / name, f'exec {found} -h {self.host} -p {self.port}{more} "$@"')
        _script(programs / "python", f'exec {sys.executable} -W error "$@"')
        _script(programs / "edged", f'exec {sys.executable} -W error -m edged "$@"')
        (directory / "empty.toml").touch()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EDGED_")},
            "PATH": f"{programs}:{os.environ['PATH']}",
            "EDGED_CONFIG": str(directory / "empty.toml"),
            "EDGED_MQTT__HOST": self.host,
            "EDGED_MQTT__PORT": str(self.port),
            "EDGED_JOURNAL__PATH": str(directory / "journal.db"),
            "EDGED_MODELS": json.dumps(MODELS),
            "EDGED_SERVICE__GRACE_S": "0",
        }

    def start(self, script: str, log: Path) -> subprocess.Popen[bytes]:
        """Start the page's node and wait until its card says `online`."""
        process = self._spawn(script, log)
        with Listener(self.host, self.port, f"edged/v1/{NODE}/status") as listener:
            listener.wait(lambda m: m.json().get("state") == "online", ONLINE_S, log.read_text)
        return process

    def run(self, script: str) -> str:
        """Run a page's command to its end; what it printed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert done.returncode == 0, f"exit code {done.returncode}\n{script}\n\n{out}\n{err}"
        return out

    def python(self, program: str) -> str:
        """Run a page's program to its end; what it printed."""
        assert 'host="localhost"' in program, "the program has to name the broker, so that the tests can name theirs"
        file = self._directory / "program.py"
        file.write_text(program.replace('host="localhost"', f'host="{self.host}", port={self.port}'), encoding="utf-8")
        return self.run(f"python {file}")

    def listen(self, script: str) -> Listening:
        """Start a page's listener; returns when it has subscribed, which the broker's log tells."""
        self._listeners += 1
        client_id = f"docs-{os.getpid()}-{self._listeners}"
        out = self._directory / f"{client_id}.out"
        listening = Listening(self._spawn(script, out, {"DOCS_CLIENT_ID": client_id}), out)
        deadline = time.monotonic() + HEARD_S
        while f"Sending SUBACK to {client_id}" not in self._broker_log.read_text(errors="replace"):
            if time.monotonic() > deadline:
                listening.stop()
                raise AssertionError(f"did not subscribe within {HEARD_S} s: {script}\n{out.read_text()}")
            time.sleep(0.02)
        return listening

    def settle(self) -> None:
        """Wait until every request so far has its final, so that the next section hears nothing of this one."""
        self._settled += 1
        # The node answers in the order of arrival: when this is refused, all `accepted` of earlier requests are here.
        marker = f"settle-{self._settled}"
        self._replies.publish(f"edged/v1/{NODE}/req/{marker}")
        self._replies.final(marker, HEARD_S)
        for accepted in [m for m in self._replies.received if b'"type":"accepted"' in m.payload]:
            self._replies.wait(partial(_ends, accepted), HEARD_S)

    def _spawn(self, script: str, out: Path, more: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        with out.open("wb") as file:
            return subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                env={**self.environment, **(more or {})},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )


@contextlib.contextmanager
def playground(directory: Path, start_node: str) -> Iterator[Playground]:
    """A playground whose node was started by a page's own command.

    Raises:
        NoBrokerError: there is no `mosquitto`.
    """
    home = directory / "broker"
    home.mkdir()
    with (
        local_broker(home) as broker,
        Listener(broker.host, broker.port, f"edged/v1/{NODE}/reply/#", "reply/#") as replies,
    ):
        ground = Playground(directory, broker, home / "mosquitto.log", replies)
        process = ground.start(start_node, directory / "node.log")
        try:
            yield ground
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours with the session that it leads."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ends(accepted: Received, message: Received) -> bool:
    """Whether a message is the final of the stream that another one began."""
    same = message.topic == accepted.topic and message.json()["id"] == accepted.json()["id"]
    return same and message.json()["type"] == "final" and message.json()["gen"] > 0


def _script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
