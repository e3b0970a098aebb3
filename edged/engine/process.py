"""The daemon's handle on one engine: starts the child process, talks to it, and starts it again when it dies.

One thread per engine does all of that; it waits in one selector for the child's reports, for its standard error, and
for orders from the daemon. Nothing in the daemon can be blocked by a child that hangs: orders wait in a buffer.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO

from edged.engine.protocol import Decoder, Failed, Load, Order, ProtocolError, Ready, Report, encode

#: What the child starts with, where the operator's environment does not say otherwise. An abort must not start a
#: debugger. And llama.cpp's threads wait for each other hundreds of times a token: when they spin for long, as is the
#: default, whatever else wants a core makes them many times slower; when they sleep at once, half of the speed is gone
#: on an idle machine. So they spin a little (docs/performance.md).
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "2000"}
#: First and longest wait before a child is started again, seconds; it doubles each time.
_BACKOFF_S = (0.2, 30.0)
#: A child that has served for so long was not broken: the next wait is the first again. Seconds.
_STEADY_S = 60.0
#: How long a child may take to end once its socket is closed, before it is killed. Seconds.
_GRACE_S = 2.0
#: So much of the end of the child's standard error is kept to explain its death. Characters.
_LAST_WORDS = 500
#: What is read at once from the child. Bytes.
_READ = 1 << 16
#: So often is read what an ended child has left in the pipe of its standard error, which holds 64 KiB (pipe(7)).
_PIPE_READS = 16


@dataclass(frozen=True, slots=True)
class Lost:
    """The child is gone, with everything it was generating; another is started after a wait.

    Attributes:
        retry_in_s: seconds until then.
    """

    reason: str
    retry_in_s: float


class EngineProcess:
    """One model's child process, kept alive.

    Args:
        load: what the child has to load.
        report: called with the number of the child (1, 2, …) and each report of it, from this engine's thread; must
            not block.
        command: the child's command line; the number of its socket is appended. Tests put a scripted worker here.
    """

    def __init__(
        self,
        load: Load,
        report: Callable[[int, Report | Lost], None],
        *,
        command: tuple[str, ...] = (sys.executable, "-m", "edged.engine.worker"),
    ) -> None:
        self._load = load
        self._report = report
        self._command = command
        self._orders: deque[tuple[int, Order]] = deque()
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._stopping = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread, which starts the child."""
        self._thread.start()

    def send(self, child: int, order: Order) -> None:
        """Give an order to the child with that number; if it is gone by now, so is the order."""
        self._orders.append((child, order))
        self._wake()

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        child = self._child
        return child.pid if child else None

    @property
    def alive(self) -> bool:
        """Whether the thread that looks after the child is."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the child, by closing its socket and then by force, and wait for the thread."""
        self._stopping.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        self._woken.close()
        self._waker.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it has been woken often enough; closed: it is stopped
            self._waker.send(b"\0")

    def _run(self) -> None:
        wait = _BACKOFF_S[0]
        while not self._stopping.is_set():
            self._number += 1
            started = time.monotonic()
            reason = self._serve()
            if self._stopping.is_set():
                return
            if time.monotonic() - started > _STEADY_S:
                wait = _BACKOFF_S[0]
            self._report(self._number, Lost(reason, wait))
            self._stopping.wait(wait)
            wait = min(wait * 2, _BACKOFF_S[1])

    def _serve(self) -> str:
        """Start a child and serve it until it is gone; returns why it is."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            return f"its process cannot be started: {error}"
        with ours, theirs:
            try:
                child = self._child = self._spawn(theirs)
            except OSError as error:
                return f"its process cannot be started: {error}"
            theirs.close()
            dialogue = _Dialogue(ours, child, self._woken)
            try:
                reason = self._converse(dialogue)
            except ProtocolError as error:
                reason = f"it sent nonsense ({error})"
            except OSError as error:
                reason = f"its socket failed ({error})"
        code = _end(child)
        self._child = None
        return f"{reason or _obituary(code)}{dialogue.last_words()}"

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own module, no shell
            [*self._command, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            env=_ENVIRONMENT | os.environ,
            start_new_session=True,  # signals of a terminal are the daemon's to handle
        )

    def _converse(self, dialogue: _Dialogue) -> str:
        """Pass orders and reports until the child is gone, or is to go; returns its own reason, if it gave one."""
        dialogue.send(self._load)
        while not self._stopping.is_set():
            for report in dialogue.wait():
                if isinstance(report, Ready):
                    self._load = replace(self._load, digest=report.digest)  # the next child need not read it all
                self._report(self._number, report)
                if isinstance(report, Failed):
                    return report.message
            if dialogue.ended:
                return ""
            while self._orders:
                number, order = self._orders.popleft()
                if number == self._number:
                    dialogue.send(order)
        return ""


class _Dialogue:
    """One child's three streams in one selector: its reports, its standard error, and the daemon's wake-up."""

    def __init__(self, sock: socket.socket, child: subprocess.Popen[bytes], woken: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        assert child.stderr is not None  # noqa: S101 - it was started with a pipe
        self._stderr: IO[bytes] = child.stderr
        os.set_blocking(self._stderr.fileno(), False)
        self._woken = woken
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._tail = b""
        self._selector = selectors.DefaultSelector()
        for source in (self._socket, self._stderr, self._woken):
            self._selector.register(source, selectors.EVENT_READ)
        self.ended = False

    def send(self, order: Order) -> None:
        """Send an order, or keep it until the child reads again."""
        self._unsent += encode(order)
        self._flush()

    def wait(self) -> list[Report]:
        """Wait until something happens; the reports that came."""
        reports: list[Report] = []
        for key, mask in self._selector.select():
            if key.fileobj is self._woken:
                self._woken.recv(_READ)
            elif key.fileobj is self._stderr:
                self._listen()
            else:
                if mask & selectors.EVENT_WRITE:
                    self._flush()
                if mask & selectors.EVENT_READ:
                    reports += self._read()
        return reports

    def last_words(self) -> str:
        """What an ended child wrote last to its standard error, as a clause; empty where it wrote nothing."""
        for _ in range(_PIPE_READS):  # not for ever: another process may hold the pipe, and go on writing
            if not self._listen():
                break
        self._selector.close()
        self._stderr.close()
        text = self._tail.decode("utf-8", errors="replace").strip()
        return f"; its last words: {text[-_LAST_WORDS:]}" if text else ""

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # reading tells of its end
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._socket, wanted)

    def _read(self) -> list[Report]:
        try:
            data = self._socket.recv(_READ)
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended = True
            return []
        return [m for m in self._decoder.feed(data) if isinstance(m, Report)]

    def _listen(self) -> bool:
        """Take some of what stands in the pipe of the standard error, which must never fill up and block the child.

        Once a turn, because a child may write as fast as this reads. Returns whether there may be more.
        """
        try:
            data = os.read(self._stderr.fileno(), _READ)
        except BlockingIOError:
            return False
        self._tail = (self._tail + data)[-4 * _LAST_WORDS :]
        if not data:
            with contextlib.suppress(KeyError):  # closed by the child, and seen before
                self._selector.unregister(self._stderr)
        return bool(data)


def _end(child: subprocess.Popen[bytes]) -> int:
    """Wait for a child whose socket is closed, kill it if it does not end; returns its exit code."""
    try:
        return child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _obituary(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        return f"its process was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process was ended by signal {-code}"
