"""Trials with the starter model: what the child measures, and what it says where it cannot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from edged.engine import files
from edged.engine.protocol import Load
from edged.tune.child import Trials
from edged.tune.command import text
from edged.tune.layouts import Workshop
from edged.tune.search import TrialFailed

pytestmark = pytest.mark.model

TRIALS = Trials(silence_s=120, total_s=120)


@pytest.fixture(scope="module")
def starter() -> files.ModelFile:
    """The starter model's file. Where it is missing the tests fail, and say what installs it."""
    try:
        return files.describe(files.resolve(files.STARTER))
    except files.ModelNotFound as error:
        pytest.fail(str(error), pytrace=False)


def _speed(path: Path, *, context: int = 256, parallel: int = 2, **work: int) -> dict[str, Any]:
    load = asdict(Load(path=str(path), context=context, parallel=parallel, threads=1))
    return TRIALS.run(
        {
            "op": "speed",
            "load": load,
            "work": {"text": text(), "prompt": 16, "depth": 8, "steps": 2, "streams": 4} | work,
        }
    )


def _perplexity(path: Path, what: str, *, windows: int = 1) -> float:
    load = asdict(Load(path=str(path), threads=1))
    return float(TRIALS.run({"op": "perplexity", "load": load, "text": what, "windows": windows})["perplexity"])


def test_a_trial_measures_prefill_decode_and_memory(starter: files.ModelFile) -> None:
    found = _speed(starter.path)
    assert min(found["prefill"], found["decode_one"], found["decode_many"]) > 0
    assert found["streams"] == 2  # as many as may run at the same time
    assert 50e6 < found["memory"] < 2e9
    assert 134e6 < found["parameters"] < 135e6
    assert {"Q4_0", "Q8_0"} <= set(found["types"])


def test_a_small_context_makes_the_trial_shorter_not_impossible(starter: files.ModelFile) -> None:
    found = _speed(starter.path, context=64, parallel=8, prompt=512, depth=128, steps=24)
    assert found["streams"] == 4
    assert found["decode_many"] > 0


def test_a_requantised_file_works_and_loses_a_little(starter: files.ModelFile, tmp_path: Path) -> None:
    assert starter.size > 0
    made = Workshop(TRIALS, starter, tmp_path, parameters=134_515_008, threads=1).make("Q4_0")
    assert made.quantisation == "Q4_0"
    assert made.size < starter.size
    before, after = _perplexity(starter.path, text()), _perplexity(made.path, text())
    assert 10 < before < 60
    assert before * 0.95 < after < before * 1.5
    assert _speed(made.path)["prefill"] > 0


def test_perplexity_tells_sense_from_nonsense(starter: files.ModelFile) -> None:
    words = text().split()
    assert _perplexity(starter.path, " ".join(reversed(words))) > 2 * _perplexity(starter.path, text())


@pytest.mark.parametrize("op", ["speed", "perplexity"])
def test_a_file_that_is_no_model_is_a_sentence(tmp_path: Path, op: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(TrialFailed, match=r"cannot load 'bad\.gguf': "):
        _speed(path) if op == "speed" else _perplexity(path, text())


def test_what_cannot_be_requantised_is_a_sentence(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\0" * 100)
    order = {"op": "requantise", "source": str(bad), "target": str(tmp_path / "x"), "type": "Q4_0", "threads": 1}
    with pytest.raises(TrialFailed, match=r"^llama\.cpp cannot make 'bad\.gguf' into Q4_0: "):
        TRIALS.run(order)


def test_a_text_that_is_too_short_is_a_sentence(starter: files.ModelFile) -> None:
    with pytest.raises(TrialFailed, match="too short"):
        _perplexity(starter.path, "Too short.")


def test_the_text_is_long_enough_for_seven_windows() -> None:
    assert len(text().split()) > 7 * 256 * 0.8
