"""`edged ask` in a terminal: the answer as it is generated, then one line of figures."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

from edged.client.errors import (
    EdgedError,
    InvalidRequest,
    NodeUnavailable,
    NodeUndecided,
    NotConnected,
    RequestFailed,
    StreamRestarted,
    Timeout,
)
from edged.client.request import Fields
from edged.client.settings import Options
from edged.client.sync import Client, Stream
from edged.wire.messages import Final
from edged.wire.topics import Kind

# Exit codes; those above 2 are of sysexits.h, and 128 + the signal's number.
OK, FAILED, USAGE, UNAVAILABLE, TRY_AGAIN, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 69, 75, 130, 141

#: C0 and C1 control characters and DEL, except newline and tab: made visible, so that no answer commands the terminal.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class _UsageError(Exception):
    """The command line is wrong; the message says how."""


class _OutputError(Exception):
    """The answer cannot be written; the message says why."""


def ask(
    prompt: str | None,
    *,
    connection: Options,
    fields: Fields,
    stream: bool = True,
    as_json: bool = False,
    out: TextIO | None = None,
    err: TextIO | None = None,
    stdin: TextIO | None = None,
) -> int:
    """Ask a node and show its answer; never raises what a user can cause.

    Ctrl-C cancels the request, waits a moment for the figures of what there was, and leaves; a second one leaves at
    once. A reader of `out` that goes away (`| head`) cancels it too.

    Args:
        prompt: the user's text; `-` = all of `stdin`; None = the same, unless that is a terminal.
        connection: keywords of `Client`; what was not given is left out.
        fields: of the request; what was not given is left out.
        stream: False = one message with the whole answer.
        as_json: print the final as JSON, the whole text in it, instead of the text.
        out: for the answer; None = the standard output.
        err: for figures and errors; None = the standard error output.
        stdin: None = the standard input.

    Returns:
        The exit code: 0 answered, 1 failed, 2 wrong usage, 69 no broker or no node, 75 try again later,
        130 interrupted, 141 nobody reads `out` any more.
    """
    # Python has None where the shell has closed a stream.
    terminal = _Terminal(out or sys.stdout or io.StringIO(), err or sys.stderr or io.StringIO())
    kind = Kind.REQ if stream else Kind.ASK
    try:
        try:
            question = _question(prompt, stdin or sys.stdin or io.StringIO())
            with Client(**connection) as client:
                return _converse(client, question, fields, kind, terminal, as_json=as_json)
        except KeyboardInterrupt:
            terminal.end_line()
            return INTERRUPTED
        except EdgedError as error:
            terminal.say(_explanation(error))
            return _exit_code(error)
        except (_UsageError, ValueError) as error:  # ValueError: of Client, about its options
            terminal.say(str(error))
            return USAGE
    except BrokenPipeError:
        terminal.abandon()
        return BROKEN_PIPE
    except _OutputError as error:
        terminal.abandon()
        terminal.say(f"the answer cannot be written: {error}")
        return FAILED


def _converse(client: Client, question: str, fields: Fields, kind: Kind, terminal: _Terminal, *, as_json: bool) -> int:
    """Send the question and show what comes.

    Raises:
        EdgedError: there is no whole answer.
        KeyboardInterrupt: the user did not want to wait even for the figures.
    """
    stream = client._start(question, fields, kind)  # noqa: SLF001 - the same package; with `ask` the call can be cancelled
    show = (lambda _: None) if as_json else terminal.show
    code = OK
    try:
        _read(stream, terminal, show)
    except KeyboardInterrupt:
        code = INTERRUPTED
        stream.cancel()
        with contextlib.suppress(EdgedError):
            _read(stream, terminal, show)
    final = stream.final
    if final is not None and as_json:
        terminal.show(final.model_copy(update={"text": stream.text_so_far}).payload().decode())
    terminal.end_line()
    if final is not None:
        terminal.say(figures(final), name=False)
    return code


def _read(stream: Stream, terminal: _Terminal, show: Callable[[str], None]) -> None:
    """Show the answer up to its end. Unlike a `for` loop, an exception in here does not leave the stream."""
    while True:
        try:
            show(next(stream).text)
        except StopIteration:
            return
        except StreamRestarted:
            terminal.end_line()
            terminal.say("the node began again; what stands above is void")


def figures(final: Final) -> str:
    """How a request was served, in one line."""
    parts = []
    if final.usage is not None:
        parts.append(f"{final.usage.completion_tokens} tokens")
    if final.metrics is not None:
        metrics = final.metrics
        if metrics.time_to_first_token_ms is not None:
            parts.append(f"TTFT {metrics.time_to_first_token_ms:.0f} ms")
        parts += [f"{metrics.tokens_per_second:.1f} tok/s", f"e2e {metrics.e2e_time_ms / 1000:.2f} s"]
    who = final.node if final.model is None else f"{final.model} on {final.node}"
    return f"[{final.finish_reason}] {', '.join([*parts, who])}"


def _question(prompt: str | None, stdin: TextIO) -> str:
    """The prompt, from the command line or the standard input.

    Raises:
        _UsageError: there is none.
    """
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and stdin.isatty():
        raise _UsageError('no prompt: give one as an argument, e.g. edged ask "Why is the sky blue?", or pipe it in')
    try:
        text = stdin.read()
    except UnicodeDecodeError as error:
        raise _UsageError(f"the standard input is no text in {error.encoding}: {error.reason}") from None
    if not text.strip():
        raise _UsageError("the standard input is empty: there is nothing to ask")
    return text


def _explanation(error: EdgedError) -> str:
    if not isinstance(error, RequestFailed):
        return str(error)
    wait = "" if error.retry_after_ms is None else f"; try again in {error.retry_after_ms / 1000:g} s"
    return f"{error.code} ({error.status}): {error}{wait}"


def _exit_code(error: EdgedError) -> int:
    match error:
        case InvalidRequest():
            return USAGE
        case NodeUndecided():
            return USAGE if error.choices else UNAVAILABLE
        case NotConnected() | NodeUnavailable():
            return UNAVAILABLE
        case Timeout() | RequestFailed(retryable=True):
            return TRY_AGAIN
        case _:
            return FAILED


class _Terminal:
    """The answer on one stream, all else on the other, and neither in the way of the other."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self._is_tty = out.isatty()
        self._in_line = False
        for stream in (out, err):
            # A terminal that cannot show a character is no reason to stop.
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")

    def show(self, text: str) -> None:
        """Write a piece of the answer, at once."""
        if text:
            self._in_line = not text.endswith("\n")  # first: Ctrl-C may come while writing
            self._write(text.translate(_VISIBLE) if self._is_tty else text)

    def end_line(self) -> None:
        """Make the answer end with a newline, where there is one."""
        if self._in_line:
            self._in_line = False
            self._write("\n")

    def say(self, text: str, *, name: bool = True) -> None:
        """Write a line that is no part of the answer."""
        self.end_line()
        try:
            self._err.write(f"{'edged: ' if name else ''}{text.translate(_VISIBLE)}\n")
            self._err.flush()
        except BrokenPipeError:
            raise
        except OSError:  # there is nowhere left to say it
            return

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _OutputError(error.strerror or str(error)) from None

    def abandon(self) -> None:
        """Nobody reads: let what is still buffered go nowhere, or the interpreter complains at its exit."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._out.fileno())
            os.close(null)
