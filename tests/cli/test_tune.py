"""`edged tune` as a command: with the real model, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edged import cli

Start = Callable[..., subprocess.Popen[str]]

#: The command on one processor, so that it tries few numbers of threads, and a busy machine cannot make it crawl.
_ON_ONE = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from edged.cli import main; main()"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """The real command in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        config = tmp_path / "edged.toml"
        config.write_text('[[models]]\npath = "starter"\ncontext = 512\nparallel = 2\n')
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _ON_ONE, "tune", "--config", str(config), *arguments],
            env=os.environ | {"STATE_DIRECTORY": str(tmp_path / "state")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


@pytest.mark.model
def test_the_starter_model_is_measured(start: Start) -> None:
    out, err = (process := start("--quick", "--no-requantise", "--json")).communicate(timeout=120)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["model"] == "starter"
    assert [trial["what"] for trial in found["trials"]] == [
        "current",
        *["flash on", "flash off"],
        *["ubatch 32", "ubatch 128", "ubatch 256"],
    ]
    assert [trial["failed"] for trial in found["trials"]] == [None] * 6
    assert all(trial["speed"]["score"] > 0 and trial["speed"]["streams"] == 2 for trial in found["trials"])
    # a line for each trial; the current settings are measured in each step again
    assert len([line for line in err.splitlines() if "tokens/s" in line]) == 8


@pytest.mark.model
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_the_trial_and_tells_by_the_exit_code(
    start: Start, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = start("--no-requantise")
    assert process.stderr is not None
    while (line := process.stderr.read(1)) != "…":  # the first trial has been announced
        assert line, "it ended before the first trial"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "state" / "models").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["nobody"],
            "edged: nobody: no model has this alias (there are: starter), and model file 'nobody' does not exist;",
        ),
        (["--write"], "edged: --write: there is no configuration file; make one with"),
        (["--config", "/nonexistent.toml"], "edged: /nonexistent.toml: there is no such file; --config names it\n"),
    ],
)
def test_what_is_wrong_with_the_settings_is_a_sentence_and_exit_code_78(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(cli.app, ["tune", *arguments])
    assert done.exit_code == 78
    assert done.stderr.startswith(said)


def test_without_the_daemons_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "llama_cpp" else object())
    done = CliRunner().invoke(cli.app, ["tune"])
    assert done.exit_code == 69
    assert done.stderr == "edged: edged tune needs llama_cpp as well: pip install 'edged[daemon]'\n"
