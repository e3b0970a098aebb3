"""The examples that use nothing of edged do what they say."""

from __future__ import annotations

import importlib.util
import json
import queue
import subprocess
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tests.docs.pages import ROOT
from tests.docs.playground import COMMAND_S, Playground

Tell = Callable[..., int]
on_a_node = [pytest.mark.model, pytest.mark.broker]


def _run(ground: Playground, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**ground.environment, "MQTT_HOST": ground.host, "MQTT_PORT": str(ground.port)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True, timeout=COMMAND_S, check=False
    )


def _consume(ground: Playground, prompt: str) -> subprocess.CompletedProcess[str]:
    program = "examples/plain_consumer.py"
    return _run(ground, "python", program, "--host", ground.host, "--port", str(ground.port), prompt)


class TestOnANode:
    pytestmark = on_a_node

    def test_plain_consumer_shows_a_whole_answer(self, ground: Playground) -> None:
        done = _consume(ground, "Say hello.")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip()

    def test_plain_consumer_tells_why_it_was_refused(self, ground: Playground) -> None:
        done = _consume(ground, '{"prompt": "Say hello.", "max_tokens": "ten"}')
        assert done.returncode == 1
        assert "bad_request: `max_tokens`" in done.stderr

    def test_shell_asks_and_prints_the_answer_alone(self, ground: Playground) -> None:
        done = _run(ground, "examples/shell/ask.sh", "Say hello.")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip()
        assert "{" not in done.stdout

    def test_shell_reads_the_prompt_from_a_pipe(self, ground: Playground) -> None:
        done = _run(ground, "examples/shell/ask.sh", "-", stdin="Say\nhello.\n")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip()

    def test_shell_tells_why_it_was_refused(self, ground: Playground) -> None:
        done = _run(ground, "examples/shell/ask.sh", '{"prompt": "Say hello.", "tone": "kind"}')
        assert done.returncode == 1
        assert done.stderr.strip() == "bad_request: unknown field `tone`"


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_consumer", ROOT / "examples" / "plain_consumer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)  # everything is there before it looks
    return module


@pytest.fixture
def tell(consumer: ModuleType) -> Tell:
    """Give messages to the consumer; the exit code."""

    def told(*messages: dict[str, Any]) -> int:
        inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        for message in messages:
            inbox.put(json.dumps(message).encode())
        code: int = consumer.put_together(inbox)
        return code

    return told


def _chunk(seq: int, text: str, gen: int = 1) -> dict[str, Any]:
    return {"id": "k", "gen": gen, "seq": seq, "type": "chunk", "text": text, "n": 1}


def _final(seq: int, whole: str, gen: int = 1, **more: Any) -> dict[str, Any]:
    proof = {"chars": len(whole), "crc32": zlib.crc32(whole.encode())}
    return {"id": "k", "gen": gen, "seq": seq, "type": "final", "finish_reason": "stop", **proof, **more}


ACCEPTED = {"id": "k", "gen": 1, "seq": 0, "type": "accepted"}


class TestPlainConsumer:
    def test_shows_the_text_in_order_and_once(self, tell: Tell, capsys: pytest.CaptureFixture[str]) -> None:
        code = tell(_chunk(2, "für"), ACCEPTED, _chunk(1, "Nüsse "), _chunk(1, "Nüsse "), _final(3, "Nüsse für"))
        assert (code, capsys.readouterr().out) == (0, "Nüsse für\n")

    def test_starts_anew_with_a_higher_generation(self, tell: Tell, capsys: pytest.CaptureFixture[str]) -> None:
        second = [{**ACCEPTED, "gen": 2}, _chunk(1, "new", gen=2), _chunk(2, "old"), _final(2, "new", gen=2)]
        assert tell(ACCEPTED, _chunk(1, "old "), *second) == 0
        assert capsys.readouterr().out == "old new\n"

    def test_makes_a_gap_good_by_the_text_of_the_final(self, tell: Tell, capsys: pytest.CaptureFixture[str]) -> None:
        assert tell(ACCEPTED, _chunk(1, "a"), _chunk(3, "c"), _final(4, "abc", text="abc")) == 0
        assert capsys.readouterr().out == "abc\n"

    def test_never_takes_a_part_for_the_whole(self, tell: Tell, capsys: pytest.CaptureFixture[str]) -> None:
        assert tell(ACCEPTED, _chunk(1, "a"), _final(2, "ab")) == 1
        assert "missing" in capsys.readouterr().out

    def test_proves_the_text_of_the_final_too(self, tell: Tell) -> None:
        assert tell(ACCEPTED, _chunk(1, "a"), _chunk(3, "c"), _final(4, "abc", text="abd")) == 1

    def test_waits_for_what_is_missing(self, tell: Tell) -> None:
        with pytest.raises(queue.Empty):
            tell(ACCEPTED, _chunk(1, "a"), _chunk(3, "c"), _final(4, "abc"))
