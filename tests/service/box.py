"""A machine that systemd has booted: this one's files in a container, with a network of its own and nothing in it.

What is written there goes into memory and is gone with it. It takes root, and Debian's systemd and systemd-nspawn.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.deploy.tools import ROOT, program

NAME = "edgebox"
#: Where the project is in it: files, as after a clone, that may be written to.
SOURCE = "/srv/source"
#: It ends by itself after so long, seconds.
_LIFE_S = 1800
#: What is started, and that nobody is asked for a time zone where this machine has not been booted itself.
_BOOT = ("systemd.unit=box.target", "systemd.firstboot=no")
#: A machine of the kind takes two seconds.
_BOOT_S = 120.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Mounts this machine's files so that they can be written to in memory, and becomes the container.
_MOUNTED = f"""
set -e
mount -t tmpfs -o size=3g tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
# Only what these tests need is started, not what this machine has besides.
printf '[Unit]\\nRequires=basic.target\\nAfter=basic.target\\nWants=mosquitto.service\\n' \
    > "$1/root/etc/systemd/system/box.target"
echo {NAME} > "$1/root/etc/hostname"
directory=$1
shift
exec systemd-nspawn --quiet --directory="$directory/root" --register=no --keep-unit --private-network \
    --link-journal=no --resolv-conf=off --timezone=off --console=pipe "$@"
"""


class Box:
    """Runs commands in it."""

    def __init__(self, leader: int) -> None:
        self._leader = leader

    def run(
        self, *command: str, stdin: str = "", check: bool = True, network: bool = True, timeout_s: float = 60
    ) -> str:
        """Run a command as root; returns what it said.

        Args:
            command: the program and its arguments.
            stdin: what it reads.
            check: it must not fail.
            network: in the container's network; else in this machine's.
            timeout_s: how long it may take.
        """
        done = subprocess.run(
            [*self._entering(network), *command],
            env=_environment(),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"{shlex.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def open(self, *command: str) -> subprocess.Popen[str]:
        """Start a command, and read what it says."""
        entering = self._entering(network=True)
        return subprocess.Popen([*entering, *command], env=_environment(), stdout=subprocess.PIPE, text=True)

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Write a file, and make its directory."""
        script = 'mkdir -p "$(dirname "$1")" && cat > "$1" && chmod "$2" "$1"'
        self.run("sh", "-c", script, "sh", path, mode, stdin=text)

    def show(self, unit: str, key: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", unit, "--value", "-p", key).strip()

    def log(self, unit: str, *arguments: str) -> str:
        """What the journal has of a unit since its last start."""
        start = self.show(unit, "InvocationID")
        return self.run("journalctl", "--no-pager", "-o", "cat", *arguments, f"_SYSTEMD_INVOCATION_ID={start}")

    def until(self, unit: str, key: str, pattern: str, timeout_s: float = 60.0) -> None:
        """Wait until a property of a unit is so."""
        deadline = time.monotonic() + timeout_s
        while not re.fullmatch(pattern, now := self.show(unit, key)):
            assert time.monotonic() < deadline, f"{unit}: {key} is {now!r}, not {pattern!r}\n{self.log(unit)}"
            time.sleep(0.1)

    def _entering(self, network: bool) -> list[str]:
        kinds = ["-m", "-u", "-i", "-p", *(["-n"] if network else [])]
        return ["nsenter", "-t", str(self._leader), *kinds, "--", "env", f"PATH={_PATH}"]


@contextmanager
def booted(directory: Path) -> Iterator[Box]:
    """Boot one; a machine that lets nobody make containers is none for these tests."""
    program("systemd-nspawn", "systemd-container")
    if os.geteuid() != 0:
        pytest.skip("root alone may boot a container")
    log = directory / "console.log"
    rubbish = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, directory / "source", ignore=rubbish)
    if said := _refused(directory):
        pytest.skip(f"this machine makes no containers: {said}")
    with log.open("wb") as console, _container(directory, console, "--boot", *_BOOT) as process:
        deadline = time.monotonic() + _BOOT_S
        while True:
            assert process.poll() is None, f"it did not boot:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"it has not booted within {_BOOT_S} s:\n{log.read_text()}"
            leader = _leader(process.pid)
            if leader is not None:
                box = Box(leader)
                if box.run("systemctl", "is-active", "box.target", check=False).strip() == "active":
                    break
            time.sleep(0.2)
        yield box


def _environment() -> dict[str, str]:
    """This process's, for pip's settings are in it, without what is meant for these tests."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("EDGED_", "PYTHON"))}


def _refused(directory: Path) -> str:
    """Why no container can be made here at all."""
    log = directory / "trial.log"
    with log.open("wb") as console, _container(directory, console, "true") as process:
        return "" if process.wait(_BOOT_S) == 0 else log.read_text()


@contextmanager
def _container(directory: Path, console: IO[bytes], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    place = directory / "box"
    place.mkdir(exist_ok=True)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNTED, "sh", str(place)]
    command += [f"--bind={directory / 'source'}:{SOURCE}", *arguments]
    process = subprocess.Popen(
        ["timeout", "--kill-after=10", str(_LIFE_S), *command],
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=console,
    )
    try:
        yield process
    finally:
        process.terminate()  # an orderly shutdown of the container
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _leader(ancestor: int) -> int | None:
    """The container's first process, which is the first in a pid namespace of its own."""
    for file in Path(f"/proc/{ancestor}/task").glob("*/children"):
        try:
            children = [int(pid) for pid in file.read_text().split()]
        except OSError:
            continue
        for child in children:
            try:
                status = Path(f"/proc/{child}/status").read_text()
            except OSError:
                continue
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
            if len(numbers) > 1 and numbers[-1] == "1":
                return child
            if (found := _leader(child)) is not None:
                return found
    return None
