"""Runs trials, each in a child process of its own: whatever it does there, it ends as a result or as a sentence."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

# The engine's child is started with it as well, so that a trial is as fast as the engine will be.
from edged.engine.process import ENVIRONMENT, obituary
from edged.tune.search import TrialFailed

#: So much of the end of the child's standard error explains its death. Characters.
_LAST_WORDS = 300
_READ = 1 << 16


class Trials:
    """Starts a child for each order, one after the other.

    Args:
        command: the child's command line. Tests put a scripted one here.
        silence_s: a child that tells of no progress for so long is ended, seconds. The prompt of a large model on a
            small machine is one step.
        total_s: the longest that a trial may take, seconds.
    """

    def __init__(
        self,
        command: tuple[str, ...] = (sys.executable, "-m", "edged.engine.trial"),
        *,
        silence_s: float = 600.0,
        total_s: float = 7200.0,
    ) -> None:
        self._command = command
        self._silence_s = silence_s
        self._total_s = total_s

    def run(self, order: dict[str, Any]) -> dict[str, Any]:
        """Let a child do an order (edged.engine.trial); returns its result. No child is left behind, whatever happens.

        Raises:
            TrialFailed: the child said why it cannot, died, hung, or sent nonsense.
        """
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as asked:
            asked.write(json.dumps(order).encode())
            asked.seek(0)
            try:
                child = subprocess.Popen(  # noqa: S603 - our own module, no shell
                    self._command,
                    stdin=asked,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    env=ENVIRONMENT | os.environ,
                    start_new_session=True,  # a Ctrl-C in the terminal is this process's to handle
                )
            except OSError as error:
                raise TrialFailed(f"its process cannot be started: {error}") from error
            try:
                for answer in self._answers(child):
                    if "failed" in answer:
                        raise TrialFailed(str(answer["failed"]))
                    if isinstance(answer.get("result"), dict):
                        return dict(answer["result"])
                raise TrialFailed(f"{obituary(child.wait(self._silence_s))}{_last_words(said)}")
            except subprocess.TimeoutExpired:
                raise TrialFailed("its process closed its answers and did not end") from None
            finally:
                child.kill()
                child.wait()
                if child.stdout:
                    child.stdout.close()

    def _answers(self, child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
        assert child.stdout is not None  # noqa: S101 - it was started with a pipe
        deadline = time.monotonic() + self._total_s
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TrialFailed(f"it was not done after {self._total_s:g} seconds")
                if not selector.select(min(left, self._silence_s)):
                    raise TrialFailed(f"it hung: no progress for {min(left, self._silence_s):g} seconds")
                data = os.read(child.stdout.fileno(), _READ)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > _READ:
                    raise TrialFailed("it sent nonsense: a line without an end")
                yield from map(_parsed, lines)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise TrialFailed(f"it sent nonsense: {line[:80]!r}")
    return answer


def _last_words(said: IO[bytes]) -> str:
    """The last line that the child wrote to its standard error, as a clause: there stands what an exception says."""
    said.seek(0)
    lines = said.read().decode("utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"; its last words: {last[-_LAST_WORDS:]}" if last else ""
