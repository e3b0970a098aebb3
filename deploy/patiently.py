"""Run a command that is usually quick and quiet, with its output in a log; when it takes long, say what goes on.

usage: python -m deploy.patiently LOG COMMAND [ARGUMENT…]

Made for `pip install`: what takes minutes there is compiling llama.cpp, once in a machine's life (pip keeps the wheel).
Exits with the command's code; where that is not 0, the end of the log is shown.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

from deploy.signals import held, signals_end_the_block

#: How often a line is printed while the command runs, seconds.
EVERY_S = 15.0
#: What to expect of compiling llama.cpp, for people.
USUALLY = "usually 3 to 10 minutes, once"
#: How much of the log is shown when the command fails, in lines, and how long one of them may be, in characters.
TAIL_LINES, TAIL_WIDTH = 30, 300

_STARTED = re.compile(rb"Building wheel for llama-cpp-python[^\n]*: started")
_FINISHED = re.compile(rb"Building wheel for llama-cpp-python[^\n]*: finished")
#: A step of ninja's, as `pip install -v` shows it: [17/193].
_STEP = re.compile(rb"^\s*\[(\d+)/(\d+)\] ", re.MULTILINE)


class BuildLog:
    """Reads the growing log, and knows whether llama.cpp is being compiled and how far that is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rest = b""
        self.building = False
        self.progress = ""

    def read(self) -> None:
        """Take in what was written since the last call; a line that is not complete yet waits for the next one."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            if _STARTED.search(line):
                self.building = True
            elif _FINISHED.search(line):
                self.building = False
            elif self.building and (step := _STEP.match(line)):
                self.progress = f"step {int(step[1])} of {int(step[2])}, "


def run(command: list[str], log: Path, *, every_s: float = EVERY_S) -> int:
    """Run `command`, append its output to `log`, and print a line every `every_s` seconds.

    Interrupted, by a signal or Ctrl-C, it takes the command and all that the command started down with it.

    Returns:
        The command's exit code; as a shell has it (128 + signal) where a signal ended it.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        out, reader = stack.enter_context(log.open("ab")), stack.enter_context(log.open("rb"))
        start = reader.seek(0, 2)
        try:
            with held():
                # A session of its own: compilers are the command's grandchildren, and a signal to it reaches them all.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
                stack.callback(_end, process)
            _watch(process, BuildLog(reader), began, every_s)
        except KeyboardInterrupt:
            print("edged: interrupted; run it again and it goes on", file=sys.stderr)
            return 130
    code = process.returncode
    if code:
        _explain(command, log, start)
    return 128 - code if code < 0 else code


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that the command is gone: asked first, then made to."""
    for number, patience_s in ((signal.SIGINT, 5.0), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)


def _watch(process: subprocess.Popen[bytes], log: BuildLog, began: float, every_s: float) -> None:
    """Wait for the process, printing a line when a build begins and then every `every_s` seconds."""
    due, announced = began + every_s, False
    while True:
        try:
            process.wait(timeout=min(0.5, every_s))
        except subprocess.TimeoutExpired:
            pass
        else:
            return
        log.read()
        if log.building and not announced:
            announced = True
            _say(f"compiling llama.cpp for this machine ({USUALLY})")
        now = time.monotonic()
        if now >= due:
            due = now + every_s
            so_far = f"{_duration(now - began)} so far"
            building = f"compiling llama.cpp: {log.progress}{so_far} ({USUALLY})"
            _say(building if log.building else f"installing: {so_far}")


def _explain(command: list[str], log: Path, start: int) -> None:
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode("utf-8", errors="replace")
    for line in text.splitlines()[-TAIL_LINES:]:
        print(f"  | {line[:TAIL_WIDTH]}", file=sys.stderr)
    print(f"edged: failed: {' '.join(command)}", file=sys.stderr)
    if "Killed signal" in text:
        print("edged: the compiler ran out of memory. Try: CMAKE_BUILD_PARALLEL_LEVEL=1 make setup", file=sys.stderr)
    print(f"edged: the end of its output is above, all of it in {log}", file=sys.stderr)


def _say(text: str) -> None:
    print(f"edged: {text}", flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    signals_end_the_block()
    sys.exit(run(sys.argv[2:], Path(sys.argv[1])))
