"""What `edged ask` does in a terminal, in a pipe, and when it is interrupted."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from edged.client.ask import ask
from edged.wire.errors import ErrorCode
from edged.wire.messages import Error
from tests.brokers import free_port
from tests.client.puppet import PATIENCE_S, Asked, Options, PuppetNode

FIGURES = "7 tokens, TTFT 143 ms, 64.2 tok/s, e2e 1.62 s, starter on kitchen\n"


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


class Run:
    """One `edged ask`, in this process."""

    def __init__(self, options: Options, prompt: str | None = "Hello?", **more: Any) -> None:
        self.out = more.pop("out", None) or io.StringIO()
        self.err = io.StringIO()
        more.setdefault("stdin", Tty())
        more.setdefault("fields", {})
        self.code = ask(prompt, connection={**options}, out=self.out, err=self.err, **more)  # type: ignore[typeddict-item]


@contextmanager
def start(options: Options, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """One `edged ask` as a process, with its output in pipes; ends with the block."""
    program = "import json, sys; from edged.client.ask import ask; sys.exit(ask('Hello?', **json.loads(sys.argv[1])))"
    arguments = json.dumps({"connection": dict(options), "fields": {}, **more})
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", program, arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_answer_goes_to_out_and_the_figures_to_err(options: Options, puppet: PuppetNode) -> None:
    puppet.on_request = lambda asked: asked.answer("Hel", "lo")
    run = Run(options)
    assert (run.code, run.out.getvalue(), run.err.getvalue()) == (0, "Hello\n", f"[stop] {FIGURES}")


def test_an_answer_that_ends_its_line_gets_no_other_newline(options: Options, puppet: PuppetNode) -> None:
    puppet.on_request = lambda asked: asked.answer("Hello\n")
    assert Run(options).out.getvalue() == "Hello\n"


def test_fields_reach_the_node_and_not_streaming_is_the_ask_topic(options: Options, puppet: PuppetNode) -> None:
    seen: list[Asked] = []

    def answer(asked: Asked) -> None:
        seen.append(asked)
        asked.answer("Hi")

    puppet.on_request = answer
    assert Run(options, fields={"max_tokens": 5, "system": "Be brief."}, stream=False).out.getvalue() == "Hi\n"
    assert (seen[0].request.max_tokens, seen[0].request.system, seen[0].kind) == (5, "Be brief.", "ask")


def test_json_is_the_final_with_the_whole_text(options: Options, puppet: PuppetNode) -> None:
    def answer(asked: Asked) -> None:
        asked.accept()
        asked.say("Hel", "lo \x1b[2J")
        asked.finish(include_text=False)

    puppet.on_request = answer
    run = Run(options, as_json=True, out=Tty())
    body = json.loads(run.out.getvalue())
    assert (body["type"], body["text"], body["usage"]["completion_tokens"]) == ("final", "Hello \x1b[2J", 7)
    assert run.code == 0


@pytest.mark.parametrize(
    ("prompt", "stdin"), [("-", Tty("from a terminal")), (None, io.StringIO("piped")), ("-", io.StringIO("piped"))]
)
def test_the_prompt_may_come_from_the_standard_input(
    options: Options, puppet: PuppetNode, prompt: str | None, stdin: io.StringIO
) -> None:
    puppet.on_request = lambda asked: asked.answer(asked.request.prompt or "")
    wanted = stdin.getvalue()
    stdin.seek(0)
    assert Run(options, prompt, stdin=stdin).out.getvalue() == wanted + "\n"


@pytest.mark.parametrize(
    ("prompt", "stdin", "words"),
    [
        (None, Tty(), "no prompt"),
        ("-", io.StringIO(" \n"), "is empty"),
        ("-", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\xfd"), encoding="utf-8"), "no text in utf-8"),
    ],
)
def test_without_a_prompt_it_is_wrong_usage(options: Options, prompt: str | None, stdin: Any, words: str) -> None:
    run = Run(options, prompt, stdin=stdin)
    assert run.code == 2
    assert words in run.err.getvalue()
    assert run.out.getvalue() == ""


def test_no_answer_commands_the_terminal(options: Options, puppet: PuppetNode) -> None:
    evil = "a\x1b[31mred\x07\r\nb\tc\x9b0m\x7f\x00 ü ✓"
    puppet.on_request = lambda asked: asked.answer(evil)
    shown = Run(options, out=Tty()).out.getvalue()
    assert shown == "a\\x1b[31mred\\x07\\x0d\nb\tc\\x9b0m\\x7f\\x00 ü ✓\n"
    assert Run(options).out.getvalue() == evil + "\n"  # a file gets what the model said


def test_an_error_of_the_node_does_not_command_the_terminal_either(options: Options, puppet: PuppetNode) -> None:
    puppet.on_request = lambda asked: asked.refuse(ErrorCode.BAD_REQUEST, "no \x1b[2J")
    assert "\x1b" not in Run(options, out=Tty()).err.getvalue()


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        (ErrorCode.BAD_REQUEST, 1, "bad_request (400): because"),
        (ErrorCode.CONTEXT_OVERFLOW, 1, "context_overflow (413): because"),
        (ErrorCode.OVERLOADED, 75, "overloaded (429): because; try again in 1.5 s"),
        (ErrorCode.DRAINING, 75, "draining (503): because"),
        (ErrorCode.TIMEOUT, 75, "timeout (408): because"),
    ],
)
def test_a_refusal_is_explained_and_says_whether_to_try_again(
    options: Options, puppet: PuppetNode, code: ErrorCode, exit_code: int, words: str
) -> None:
    retry = 1500 if code is ErrorCode.OVERLOADED else None
    puppet.on_request = lambda asked: asked.refuse(code, "because", retry_after_ms=retry)
    run = Run(options)
    assert run.code == exit_code
    assert run.err.getvalue() == f"edged: {words}\n"
    assert run.out.getvalue() == ""


def test_what_was_said_before_an_error_ends_its_line(options: Options, puppet: PuppetNode) -> None:
    def answer(asked: Asked) -> None:
        asked.accept()
        asked.say("half an")
        asked.finish("error", error=Error.of(ErrorCode.CRASHED, "the engine went down twice"))

    puppet.on_request = answer
    run = Run(options)
    assert (run.code, run.out.getvalue()) == (1, "half an\n")
    assert "crashed (507)" in run.err.getvalue()


def test_a_restart_is_announced_and_the_new_answer_shown(options: Options, puppet: PuppetNode) -> None:
    def answer(asked: Asked) -> None:
        asked.accept()
        asked.say("one")
        asked.restart()
        asked.answer("uno", " due")

    puppet.on_request = answer
    run = Run(options)
    assert (run.code, run.out.getvalue()) == (0, "one\nuno due\n")
    assert "the node began again" in run.err.getvalue()


def test_no_broker_and_no_node_are_unavailable(options: Options, puppet: PuppetNode) -> None:
    assert Run({"host": "127.0.0.1", "port": free_port()}).code == 69
    assert Run({**options, "node": "nowhere"}).code == 69
    assert Run({**options, "node": None, "topic_root": "test/nobody", "discovery_timeout": 0.05}).code == 69
    puppet.show("lost")
    run = Run(options)
    assert run.code == 69
    assert "'lost'" in run.err.getvalue()


def test_wrong_options_and_fields_are_wrong_usage(options: Options, puppet: PuppetNode) -> None:
    assert Run({**options, "node": "a/b"}).code == 2
    run = Run(options, fields={"temperature": 99})
    assert run.code == 2
    assert "`temperature`" in run.err.getvalue()
    with PuppetNode(puppet.broker, puppet.topics.root, "cellar") as other:
        other.show("online")
        run = Run({**options, "node": None})
    assert run.code == 2
    assert "--node NAME" in run.err.getvalue()


def test_a_timeout_may_be_tried_again(options: Options, puppet: PuppetNode) -> None:
    assert Run({**options, "timeout": 0.1}).code == 75
    puppet.asked()


def test_ctrl_c_cancels_and_shows_the_figures_of_what_there_was(options: Options, puppet: PuppetNode) -> None:
    with start(options) as process:
        asked = puppet.asked()
        asked.accept()
        asked.say("one")
        assert process.stdout is not None
        assert process.stdout.read(3) == b"one"
        process.send_signal(signal.SIGINT)
        assert puppet.cancelled.get(timeout=PATIENCE_S) == asked.id
        asked.finish("cancelled")
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err.decode()) == (130, b"\n", f"[cancelled] {FIGURES}")


def test_a_second_ctrl_c_leaves_at_once(options: Options, puppet: PuppetNode) -> None:
    with start(options) as process:
        asked = puppet.asked()
        asked.accept()
        asked.say("one")
        assert process.stdout is not None
        assert process.stdout.read(3) == b"one"
        process.send_signal(signal.SIGINT)
        assert puppet.cancelled.get(timeout=PATIENCE_S) == asked.id  # and is not confirmed
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (130, b"\n", b"")


def test_a_reader_that_goes_away_cancels_in_silence(options: Options, puppet: PuppetNode) -> None:
    with start(options) as process:
        asked = puppet.asked()
        asked.accept()
        asked.say("one")
        assert process.stdout is not None
        assert process.stdout.read(3) == b"one"
        process.stdout.close()
        asked.say("two")
        assert puppet.cancelled.get(timeout=PATIENCE_S) == asked.id
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE_S) == 141


def redirected(options: Options, prompt: str | None, redirection: str) -> subprocess.CompletedProcess[str]:
    """One `edged ask` with its standard streams as the shell has them."""
    program = (
        "import json, sys; from edged.client.ask import ask; p, k = json.loads(sys.argv[1]); sys.exit(ask(p, **k))"
    )
    command = [sys.executable, "-c", program, json.dumps([prompt, {"connection": dict(options), "fields": {}}])]
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command]
    return subprocess.run(shell, check=False, timeout=PATIENCE_S, capture_output=True, text=True)


@pytest.mark.parametrize(("prompt", "code"), [("Hello?", 0), (None, 2)])
def test_closed_standard_streams_are_no_reason_to_fail(
    options: Options, puppet: PuppetNode, prompt: str | None, code: int
) -> None:
    puppet.on_request = lambda asked: asked.answer("Hi")
    assert redirected(options, prompt, "<&- >&- 2>&-").returncode == code


def test_a_full_disk_is_explained(options: Options, puppet: PuppetNode) -> None:
    puppet.on_request = lambda asked: asked.answer("Hi")
    done = redirected(options, "Hello?", ">/dev/full")
    assert (done.returncode, done.stderr) == (1, "edged: the answer cannot be written: No space left on device\n")


def test_figures_that_cannot_be_written_are_no_reason_to_fail(options: Options, puppet: PuppetNode) -> None:
    puppet.on_request = lambda asked: asked.answer("Hi")
    done = redirected(options, "Hello?", "2>/dev/full")
    assert (done.returncode, done.stdout) == (0, "Hi\n")


def test_a_terminal_that_cannot_show_a_character_shows_its_number(options: Options, puppet: PuppetNode) -> None:
    puppet.on_request = lambda asked: asked.answer("✓")
    out: Any = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Run(options, out=out)
    out.flush()
    assert out.buffer.getvalue() == b"\\u2713\n"
