"""Logs: lines for people on a terminal, else one JSON object a line. Nothing here ever sees a prompt or an answer.

What this package logs and what libraries log through `logging` (paho) ends in the same handler on stderr, which writes
one line at a time under its lock, so any thread may log.
"""

from __future__ import annotations

import logging
import re
import sys
from contextlib import suppress
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from edged.observe import journald

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]

_NAME = "edged"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class _Handler(logging.StreamHandler[TextIO]):
    """Whoever reads stderr may go away; that is no reason for the one who logs to fail."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        with suppress(Exception):
            super().handleError(record)


def configure(level: Level = "info", format: Format = "auto", *, stream: TextIO | None = None) -> FilteringBoundLogger:  # noqa: A002 - the setting's name
    """Send all logs of the process to stderr: structlog's and logging's. May be called again; the last call counts.

    Args:
        level: the least that is written.
        format: `auto` is `console` on a terminal, else `json`. Lines for systemd's journal have its priority in front.
        stream: instead of stderr.

    Returns:
        A logger, as `structlog.get_logger()` gives everywhere, for `logger.info("event", field=value)`: the name of an
        event and its fields, never prompt text.
    """
    out = sys.stderr if stream is None else stream
    console = format == "console" or (format == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = _Handler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_last(console=console, out=out)],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: logging.getLogger(_NAME),
        context_class=dict,
    )
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def _last(*, console: bool, out: TextIO) -> list[Processor]:
    """What turns the fields into a line. Tracebacks come without local variables: those hold prompts."""
    first: Processor = _printable if console else _ordered
    renderer: Processor = structlog.processors.JSONRenderer()
    if console:
        renderer = structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)
    return [structlog.processors.format_exc_info, first, _with_priority(renderer, out)]


def _with_priority(renderer: Processor, out: TextIO) -> Processor:
    def render(logger: WrappedLogger, method: str, fields: EventDict) -> str:
        begin = journald.prefix(fields["level"], out)
        return "\n".join(begin + line for line in str(renderer(logger, method, fields)).splitlines())

    return render


def _ordered(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    return {**{name: fields[name] for name in ("timestamp", "level", "event")}, **fields}


def _printable(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Topics and ids come from strangers: their control characters must not reach a terminal."""

    def safe(text: str) -> str:
        return _CONTROL.sub(lambda c: f"\\x{ord(c[0]):02x}", text)

    def shown(name: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        # a traceback keeps its lines, indented: none of them can pass for one of the log's own
        return "\n".join(f"  {safe(line)}" for line in value.splitlines()) if name == "exception" else safe(value)

    return {name: shown(name, value) for name, value in fields.items()}
