"""`make demo` and `make run`, as their scripts run: a real broker, the real daemon, the starter model."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from deploy import demo, stack
from tests.deploy.tools import ROOT, program

pytestmark = pytest.mark.broker
#: Short answers, and one thread: other tests may have the second core.
QUICK = json.dumps([{"path": "starter", "threads": 1, "defaults": {"max_tokens": 12, "temperature": 0}}])
MARK = "EDGED_TEST_MARK"


class Script:
    """A running script of deploy/, and all that it started."""

    def __init__(self, *command: str, **env: str) -> None:
        self._mark = uuid.uuid4().hex
        self.popen = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "EDGED_MODELS": QUICK, MARK: self._mark, **env},
        )

    def read_until(self, text: str) -> str:
        """What it prints, up to the line with `text`; pytest's timeout bounds the wait."""
        assert self.popen.stdout is not None
        read = ""
        for line in self.popen.stdout:
            read += line
            if text in line:
                return read
        pytest.fail(f"it ended before it printed {text!r}:\n{read}")

    def finish(self) -> tuple[int, str]:
        """Its exit code, and the rest of what it prints."""
        rest, _ = self.popen.communicate(timeout=120)
        return self.popen.returncode, rest

    def leftovers(self) -> list[str]:
        """Command lines of processes that it started, they or theirs, and that still run."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and f"{MARK}={self._mark}".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def close(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def start() -> Iterator[type[Script]]:
    program("mosquitto", "mosquitto")
    program("mosquitto_sub", "mosquitto-clients")
    with ExitStack() as started:

        class Started(Script):
            def __init__(self, *command: str, **env: str) -> None:
                super().__init__(*command, **env)
                started.callback(self.close)

        yield Started


@pytest.mark.model
def test_the_demo_shows_an_answer_and_its_figures_and_leaves_nothing_behind(start: type[Script]) -> None:
    process = start("deploy.demo")
    code, said = process.finish()
    assert code == 0, said
    assert re.search(r"mosquitto_pub -h 127.0.0.1 -p \d+ .* -t edged/v1/demo/req/hello -m 'Why is the sky blue", said)
    assert re.search(r"^  tokens +\d+ in the prompt, 12 in the answer$", said, re.MULTILINE)
    assert re.search(r"^  first token after +\d+ ms$", said, re.MULTILINE)
    # The answer stands between the commands and the figures.
    assert re.search(r"two sentences\.'\n\n\S[^$]{10,}\n\n  finish reason +length\n", said), said
    assert process.leftovers() == []


def test_a_demo_that_fails_says_why_with_the_daemons_own_words(start: type[Script]) -> None:
    process = start("deploy.demo", EDGED_LOG__LEVEL="loud")
    code, said = process.finish()
    assert code == 1
    assert "the demo failed: the daemon (edged run) ended by itself with code 78" in said
    assert "'loud'" in said
    assert process.leftovers() == []


@pytest.mark.model
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str)
def test_an_interrupted_demo_stops_what_it_started(start: type[Script], number: signal.Signals, code: int) -> None:
    process = start("deploy.demo")
    process.read_until("the daemon is starting")
    process.popen.send_signal(number)
    assert process.finish()[0] == code
    assert process.leftovers() == []


@pytest.mark.model
def test_run_stays_until_ctrl_c_and_that_is_its_ordinary_end(start: type[Script], tmp_path: Path) -> None:
    run = start("deploy.run", str(tmp_path), EDGED_NODE__NAME="kitchen")
    said = run.read_until("Ctrl-C ends both")
    subscribe = re.search(r"mosquitto_sub -h 127.0.0.1 -p (\d+) -v -t 'edged/v1/kitchen/reply/#'\n", said)
    assert subscribe is not None, said
    assert re.search(rf"mosquitto_pub -h 127.0.0.1 -p {subscribe[1]} -t edged/v1/kitchen/req -m ", said)
    where = ["-h", "127.0.0.1", "-p", subscribe[1], "-t", "edged/v1/kitchen/status"]
    card = subprocess.run(
        [program("mosquitto_sub", "mosquitto-clients"), *where, "-C", "1", "-W", "60"],
        capture_output=True,
        timeout=90,
        check=True,
    )
    assert json.loads(card.stdout)["node"] == "kitchen"
    run.popen.send_signal(signal.SIGINT)
    code, rest = run.finish()
    assert code == 0, rest
    assert "daemon and broker are stopped" in rest
    assert run.leftovers() == []


def test_run_ends_with_an_error_when_the_daemon_does(start: type[Script], tmp_path: Path) -> None:
    run = start("deploy.run", str(tmp_path), EDGED_LOG__LEVEL="loud")
    code, said = run.finish()
    assert code == 1
    assert "'loud'" in said
    assert "the daemon (edged run) ended by itself with code 78" in said
    assert run.leftovers() == []


def test_a_broker_that_holds_the_usual_port_already_is_left_alone(tmp_path: Path) -> None:
    program("mosquitto", "mosquitto")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with stack.broker(tmp_path, prefer=taken) as (child, port):
            assert port != taken
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
            assert child.alive
    assert not child.alive


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "STOP_S", 0.2)
    log = tmp_path / "log"
    stubborn = ["sh", "-c", "trap '' TERM; echo ready; sleep 100; :"]
    child = stack.Child("a stubborn child", stubborn, log=log, env=os.environ)
    deadline = time.monotonic() + 30
    while "ready" not in child.log:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.stop()
    assert not child.alive


def test_the_answer_cannot_steer_the_terminal() -> None:
    assert demo.printable("a\tb\nc \x1b[2J \x9b2J \x07") == "a\tb\nc �[2J �2J �"
