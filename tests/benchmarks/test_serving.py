"""The script as `make bench` runs it, with tiny numbers. No timing is asserted: speed is not promised here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.children import bare_loop, consume
from benchmarks.consumer import Order
from benchmarks.figures import BenchmarkError
from benchmarks.load import Load, Setup
from edged.config import Settings
from edged.config.settings import Model
from edged.engine.model import BATCH_TOKENS
from tests import brokers

ROOT = Path(__file__).resolve().parents[2]


def serving(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("EDGED_")} | environment
    command = [sys.executable, "benchmarks/serving.py", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env
    ) as process:
        try:
            out, err = process.communicate(timeout=140)
        except subprocess.TimeoutExpired:
            process.terminate()  # and no SIGKILL: it has children to end
            out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.model
@pytest.mark.broker
def test_both_sides_are_measured_in_one_run(tmp_path: Path) -> None:
    try:
        brokers.binary()
    except brokers.NoBrokerError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    done = serving(
        *("--only", "throughput", "--streams", "1", "2", "--repeats", "1", "--seconds", "0.4", "--patience", "0"),
        *("--json", str(figures), "--plot", str(picture)),
        # one thread: two wait for each other, for long where the tests' machine is busy
        EDGED_MODELS='[{"path": "starter", "context": 1024, "parallel": 2, "threads": 1}]',
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "| streams |" in done.stdout
    result = json.loads(figures.read_text())
    assert result["settings"]["context"] == 1024
    forms = result["scenarios"]["throughput"]["figures"]
    assert forms.keys() == {"Q4_1", "Q4_0"}  # the file itself, and the one that the benchmark makes of it
    for form in forms.values():
        assert [one["streams"] for one in form["summary"]] == [1, 2]
        assert all(one["ratio"]["median"] > 0 for one in form["summary"])
        for repeat in form["repeats"]:
            assert repeat["bare"]["prompt_tokens"] == repeat["edged"]["prompt_tokens"]  # the same on both sides
            assert repeat["bare"]["requests"] == repeat["edged"]["requests"] == repeat["streams"]
            assert {"engine", "daemon", "broker", "consumer", "others"} <= repeat["processors"].keys()
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--streams", "0"], {}, "greater than 0"),
        (["--only", "speed"], {}, "invalid choice: 'speed'"),
        ([], {"EDGED_MODELS": '[{"path": "/nowhere/at.gguf"}]'}, "/nowhere/at.gguf"),
        ([], {"EDGED_MODELS": '[{"alias": "a"}, {"alias": "b"}]'}, "2 models are configured"),
        ([], {"EDGED_STREAM__FLUSH_MS": "soon"}, "flush_ms"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_starts(
    arguments: list[str], environment: dict[str, str], words: str
) -> None:
    done = serving(*arguments, **environment)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.model
def test_the_bare_loop_generates_what_it_is_asked_for(tmp_path: Path) -> None:
    with bare_loop(Setup.of(Settings(models=(Model(context=1024, parallel=10, threads=1),))), tmp_path) as bare:
        # The prompts of ten streams are longer than one batch.
        ten, one = (bare.run(Load(streams, 3, seed=1), patience_s=60) for streams in (10, 1))
        assert ten["prompt_tokens"] == 10 * one["prompt_tokens"] > BATCH_TOKENS
        for run in (ten, one):
            assert len(run["marks"]) == 3
            assert sorted(run["marks"]) == run["marks"]
            assert run["started"] < run["marks"][0]


def test_a_bare_loop_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_text("nothing")
    setup = Setup.of(Settings(models=(Model(path=str(tmp_path / "no.gguf"), context=256, parallel=1),)))
    with pytest.raises(BenchmarkError, match=r"llama\.cpp cannot load 'no\.gguf'"), bare_loop(setup, tmp_path):
        pass


def test_a_node_that_does_not_come_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(BenchmarkError, match="nowhere to be seen"):
        consume(Order(deaf.getsockname()[1], "bench", Load(1, 1, seed=1), patience_s=0.3))


def test_a_consumer_that_fails_is_told_of() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(BenchmarkError, match=r"(?s)the consumer failed: .*refused"):
        consume(Order(port, "bench", Load(1, 1, seed=1), patience_s=5))
