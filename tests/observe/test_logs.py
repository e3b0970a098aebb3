"""Logs are for people on a terminal and for machines elsewhere, and give nothing away."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from edged.observe.logs import Format, configure


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_is_json_with_time_level_event_and_fields() -> None:
    out = io.StringIO()
    configure("info", "json", stream=out).info("connected", host="broker", port=1883)
    (line,) = _lines(out)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line == {"level": "info", "event": "connected", "host": "broker", "port": 1883}
    assert out.getvalue().startswith('{"timestamp": ')


@pytest.mark.parametrize(("out", "as_json"), [(io.StringIO(), True), (_Terminal(), False)])
def test_auto_is_for_people_on_a_terminal_and_json_elsewhere(out: io.StringIO, as_json: bool) -> None:
    configure("info", "auto", stream=out).info("connected", host="broker")
    assert out.getvalue().startswith("{") is as_json
    assert "connected" in out.getvalue()


@pytest.mark.parametrize("kind", ["json", "console"])
def test_lines_for_systemds_journal_have_its_priorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Format
) -> None:
    with (tmp_path / "stderr").open("w+") as out:
        status = os.fstat(out.fileno())
        for stream, priorities in ((f"{status.st_dev}:{status.st_ino}", "6443"), ("1:2", ""), (None, "")):
            if stream is None:
                monkeypatch.delenv("JOURNAL_STREAM", raising=False)
            else:
                monkeypatch.setenv("JOURNAL_STREAM", stream)
            out.seek(0)
            out.truncate()
            logger = configure("info", kind, stream=out)
            logger.info("one")
            logger.warning("two", note="of\ntwo lines" if kind == "json" else "plain")
            logging.getLogger("paho").warning("three")
            logger.error("four")
            out.seek(0)
            assert [line[1] for line in out if re.match("<[0-7]>", line)] == list(priorities)


def test_logs_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json").info("connected")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "connected"


@pytest.mark.parametrize(("format", "level"), [("json", "warning"), ("console", "error")])
def test_what_is_below_the_level_is_not_written_whoever_logs_it(format: Any, level: Any) -> None:  # noqa: A002
    out = io.StringIO()
    logger = configure(level, format, stream=out)
    logger.info("quiet")
    logging.getLogger("paho").info("quiet")
    assert out.getvalue() == ""
    logger.error("loud")
    logging.getLogger("paho").error("loud")
    assert len(out.getvalue().splitlines()) == 2


def test_libraries_that_use_logging_come_out_the_same_way() -> None:
    out = io.StringIO()
    configure("debug", "json", stream=out)
    logging.getLogger("paho.mqtt").warning("failed %s of %d", "one", 2)
    (line,) = _lines(out)
    line.pop("timestamp")
    assert line == {"level": "warning", "event": "failed one of 2", "logger": "paho.mqtt"}


@pytest.mark.parametrize("kind", ["json", "console"])
def test_tracebacks_come_without_local_variables(kind: Format) -> None:
    out = io.StringIO()
    logger = configure("info", kind, stream=out)

    def fails(prompt: str) -> None:
        del prompt
        raise RuntimeError("broken")

    try:
        fails("the secret" + " prompt")
    except RuntimeError:
        logger.exception("failed")
        logging.getLogger("library").exception("failed")
    assert out.getvalue().count("RuntimeError: broken") == 2
    assert "the secret prompt" not in out.getvalue()


def test_a_strangers_control_characters_do_not_reach_the_terminal() -> None:
    out = _Terminal()
    logger = configure("info", "console", stream=out)
    evil = "a\x1b]0;owned\x07\n2026-01-01 [error] forged\x9b31m"
    logger.info(evil, topic=evil, nested=[evil])
    logging.getLogger("library").info("%s", evil)
    logger.error("failed", exc_info=ValueError(evil))
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())  # the colours are our own
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert not re.search("^2026-01-01", text, flags=re.MULTILINE)


def test_fields_that_json_has_no_form_for_are_written_all_the_same() -> None:
    out = io.StringIO()
    configure("info", "json", stream=out).info("odd", data=b"\xff", thing={1, 2}, text="\ud800")
    (line,) = _lines(out)
    assert line["data"] == "b'\\xff'"


def test_the_last_configuration_counts_and_no_line_is_written_twice() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure("debug", "json", stream=first)
    logger = configure("info", "json", stream=second)
    logger.info("once")
    logging.getLogger("library").info("once")
    assert first.getvalue() == ""
    assert [line["event"] for line in _lines(second)] == ["once", "once"]


def test_loggers_made_before_follow_the_configuration() -> None:
    before = structlog.get_logger()
    out = io.StringIO()
    configure("warning", "json", stream=out)
    before.info("quiet")
    before.warning("loud")
    assert [line["event"] for line in _lines(out)] == ["loud"]


def test_a_level_may_be_chosen_when_logging() -> None:
    out = io.StringIO()
    logger = configure("info", "json", stream=out)
    logger.log(logging.WARNING, "chosen", n=1)
    logger.bind(node="pi").info("bound")
    assert [(line["level"], line.get("node")) for line in _lines(out)] == [("warning", None), ("info", "pi")]


def test_threads_do_not_tear_each_others_lines() -> None:
    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            for part in (text[: len(text) // 2], text[len(text) // 2 :]):
                super().write(part)
                switched.wait(0.001)
            return len(text)

    switched = threading.Event()
    out = Slow()
    logger = configure("info", "json", stream=out)
    threads = [
        threading.Thread(target=lambda i=i: [logger.info("line", i=i, text="x" * 200) for _ in range(5)])
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["i"] for line in _lines(out)) == sorted([0, 1, 2, 3] * 5)


def test_a_closed_stderr_does_not_raise_into_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    logger = configure("info", "json", stream=out)
    monkeypatch.setattr(sys, "stderr", out)
    out.close()
    logger.info("into the void")


def test_a_reader_of_stderr_that_went_away_does_not_raise_into_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1, closefd=False) as out:
        logger = configure("info", "json", stream=out)
        monkeypatch.setattr(sys, "stderr", out)
        logger.info("into the void")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # where what is still buffered may go
    os.close(writer)
