"""deploy/patiently.py: quiet when it is quick, talking when llama.cpp is compiled, and telling why when it fails."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import patiently
from tests.deploy.tools import ROOT


def run(command: str, log: Path, *, every_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run it as setup.sh does, but for the interval."""
    code = "import sys; from pathlib import Path; from deploy import patiently; "
    code += f"sys.exit(patiently.run(['sh', '-c', sys.argv[1]], Path(sys.argv[2]), every_s={every_s}))"
    done = [sys.executable, "-c", code, command, str(log)]
    return subprocess.run(done, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_a_quick_command_is_quiet_and_its_output_is_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    done = run("echo collected; echo warned >&2", log)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert log.read_text() == "before\ncollected\nwarned\n"


def test_while_llama_cpp_is_compiled_it_says_so_and_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends when the reader has seen the line that it waits for, so nothing here depends on speed."""
    seen = tmp_path / "seen"
    build = f"""
        echo "  Building wheel for llama-cpp-python (pyproject.toml): started"
        echo "  [17/193] /usr/bin/g++ -O3 -c one.cpp"
        while [ ! -e {seen} ]; do sleep 0.05; done
        echo "  Building wheel for llama-cpp-python (pyproject.toml): finished with status 'done'"
    """
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "step 17 of 193" in text:
            seen.touch()

    monkeypatch.setattr(patiently, "_say", say)
    assert patiently.run(["sh", "-c", build], tmp_path / "log", every_s=0.1) == 0
    assert any(text.startswith("compiling llama.cpp for this machine") for text in said)
    progress = next(text for text in said if "step 17 of 193" in text)
    assert " s so far" in progress
    assert "usually 3 to 10 minutes, once" in progress


def test_a_failure_shows_the_end_of_the_log_and_keeps_the_exit_code(tmp_path: Path) -> None:
    done = run("for i in $(seq 100); do echo line $i; done; exit 3", tmp_path / "log")
    assert done.returncode == 3
    assert "line 100\n" in done.stderr
    assert "line 50\n" not in done.stderr
    assert str(tmp_path / "log") in done.stderr


def test_only_this_commands_failure_is_shown_not_what_stood_in_the_log_before(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("an older failure\n")
    assert "an older failure" not in run("exit 1", log).stderr


def test_a_compiler_that_ran_out_of_memory_gets_the_advice_that_helps(tmp_path: Path) -> None:
    done = run("echo 'c++: fatal error: Killed signal terminated program cc1plus'; exit 1", tmp_path / "log")
    assert "CMAKE_BUILD_PARALLEL_LEVEL=1 make setup" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str)
def test_interrupted_it_takes_the_compilers_down_with_it(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """They are grandchildren: left behind, they would go on for minutes."""
    pids = tmp_path / "pids"
    command = ["sh", "-c", f"sh -c 'echo $$ > {pids}.new; mv {pids}.new {pids}; sleep 100; :'; :"]
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.patiently", str(tmp_path / "log"), *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _until(pids.exists)
        compiler = int(pids.read_text())
        process.send_signal(number)
        assert process.wait(30) == code
        _until(lambda: not _runs(compiler))
    finally:
        process.kill()
        process.wait()


def _runs(pid: int) -> bool:
    """Whether a process exists and is more than a zombie that its new parent has not collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)
