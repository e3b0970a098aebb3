"""Trials in child processes: whatever a child does, it ends as a result or as a sentence, and no child is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from edged.tune.child import Trials
from edged.tune.search import TrialFailed


def _trials(tmp_path: Path, script: str, *, silence_s: float = 60.0, total_s: float = 60.0) -> Trials:
    """Trials with a child of the test's own, which tells its process id in a file before anything else."""
    path = tmp_path / "child.py"
    path.write_text(
        f"import json, os, sys, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n{script}"
    )
    return Trials((sys.executable, "-S", str(path)), silence_s=silence_s, total_s=total_s)


def _assert_gone(tmp_path: Path) -> None:
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


def test_a_result_is_what_the_child_says_last(tmp_path: Path) -> None:
    trials = _trials(
        tmp_path,
        """
order = json.load(sys.stdin)
print('{"step": "warm"}', flush=True)
print(json.dumps({"result": {"op": order["op"], "debugger": os.environ["GGML_NO_BACKTRACE"]}}), flush=True)
time.sleep(600)
""",
    )
    assert trials.run({"op": "speed"}) == {"op": "speed", "debugger": os.environ.get("GGML_NO_BACKTRACE", "1")}
    _assert_gone(tmp_path)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ('print(\'{"failed": "no memory for it"}\')', r"^no memory for it$"),
        ("os.abort()", r"^its process was ended by SIGABRT$"),
        ("sys.stderr.write('hm\\nGGML_ASSERT(ok) failed\\n'); os._exit(3)", r"exit code 3; .* words: GGML_ASSERT\(ok"),
        ("print('hello')", r"^it sent nonsense: b'hello'$"),
        ("print('[1]')", r"^it sent nonsense"),
        ("sys.stdout.write('x' * 200_000)", r"^it sent nonsense: a line without an end$"),
        ("os.close(1)", r"^its process ended with exit code"),
    ],
    ids=["says why", "aborts", "last words", "nonsense", "no object", "endless line", "says nothing"],
)
def test_a_child_that_fails_is_a_sentence(tmp_path: Path, script: str, why: str) -> None:
    with pytest.raises(TrialFailed, match=why):
        _trials(tmp_path, script).run({})
    _assert_gone(tmp_path)


@pytest.mark.parametrize(
    ("script", "limits", "why"),
    [
        ("time.sleep(600)", {"silence_s": 1.0}, "it hung: no progress for 1 seconds"),
        ("os.close(1); time.sleep(600)", {"silence_s": 1.0}, "closed its answers and did not end"),
        (
            "while True: print('{}', flush=True); time.sleep(0.01)",
            {"total_s": 1.0},
            "it was not done after 1 seconds|no progress for",
        ),
    ],
    ids=["silent", "without answers", "endless"],
)
def test_a_child_that_hangs_is_ended(tmp_path: Path, script: str, limits: dict[str, float], why: str) -> None:
    with pytest.raises(TrialFailed, match=why):
        _trials(tmp_path, script, **limits).run({})
    _assert_gone(tmp_path)


def test_a_command_that_does_not_exist_is_a_sentence() -> None:
    with pytest.raises(TrialFailed, match="cannot be started"):
        Trials(("/nonexistent/python",)).run({})


def test_an_interrupt_ends_the_child(tmp_path: Path) -> None:
    trials = _trials(tmp_path, "print('{}', flush=True)\ntime.sleep(600)")
    stop = threading.Event()

    def interrupt() -> None:
        pid = tmp_path / "pid"
        while not (pid.exists() and pid.read_text()) and not stop.wait(0.01):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            trials.run({})
    finally:
        stop.set()
        thread.join()
    _assert_gone(tmp_path)
