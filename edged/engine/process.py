"""The daemon's handle on one engine: starts the child process, talks to it, and starts it again when it dies.

One thread per engine does all of that; it waits in one selector for the child's reports, for its standard error, and
for orders from the daemon. Nothing in the daemon can be blocked by a child that hangs: orders wait in a buffer, and
while the child has work the thread looks once a second whether it gets on with it (`edged.engine.watch`).
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
from pathlib import Path
from typing import IO

from edged.engine import cgroup
from edged.engine.protocol import (
    Cancel,
    Decoder,
    Failed,
    Load,
    Order,
    ProtocolError,
    Ready,
    Report,
    encode,
)
from edged.engine.pulse import Pulse
from edged.engine.watch import Patience, Watch

#: What the child starts with, where the operator's environment does not say otherwise: an abort must not start a
#: debugger.
ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}
#: First and longest wait before a child is started again, seconds; it doubles each time.
_BACKOFF_S = (0.2, 30.0)
#: A child that has served for so long was not broken: the next wait is the first again. Seconds.
_STEADY_S = 60.0
#: A step that has so long to go is aborted when a request is cancelled, and begun anew without it. Seconds.
_WORTH_ABORTING_S = 0.03
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
        error: why the model could not be loaded, as `Failed` has it; empty where it was loaded, or died without a word.
        outside: it was killed from outside, by no fault of what it was generating.
    """

    reason: str
    retry_in_s: float
    error: str = ""
    outside: bool = False


class EngineProcess:
    """One model's child process, kept alive.

    Args:
        load: what the child has to load.
        report: called with the number of the child (1, 2, …) and each report of it, from this engine's thread; must
            not block.
        command: the child's command line; the numbers of the page and the socket that it shares with this process are
            appended. Tests put a scripted worker here.
        patience: how long a child that has work may do nothing.
    """

    def __init__(
        self,
        load: Load,
        report: Callable[[int, Report | Lost], None],
        *,
        command: tuple[str, ...] = (sys.executable, "-m", "edged.engine.worker"),
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        self._load = load
        self._report = report
        self._command = command
        self._patience = patience
        self._orders: deque[tuple[int, Order]] = deque()
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._stopping = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._ready_at = float("inf")
        self._stamp: tuple[int, ...] | None = None
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
            self._ready_at = float("inf")
            death = self._serve()
            if self._stopping.is_set():
                return
            if time.monotonic() - self._ready_at > _STEADY_S:
                wait = _BACKOFF_S[0]
            self._report(self._number, Lost(death.reason, wait, death.error, death.outside))
            self._stopping.wait(wait)
            wait = min(wait * 2, _BACKOFF_S[1])

    def _serve(self) -> _Death:
        """Start a child and serve it until it is gone; returns why it is."""
        stamp = _stamp(self._load.path)
        if self._number > 1 and stamp != self._stamp:
            self._load = replace(self._load, digest="")
        self._stamp = stamp
        killed = oom_kills()
        with contextlib.ExitStack() as opened:
            try:
                ours, theirs = map(opened.enter_context, socket.socketpair())
                pulse = opened.enter_context(contextlib.closing(Pulse()))
                selector = opened.enter_context(selectors.DefaultSelector())
                child = self._child = self._spawn(theirs, pulse)
            except OSError as error:
                return _Death(f"its process cannot be started: {error}")
            theirs.close()
            dialogue = _Dialogue(selector, ours, child, self._woken)
            try:
                death = self._converse(dialogue, pulse, Watch(child.pid, pulse, self._patience))
            except ProtocolError as error:
                death = _Death(f"it sent nonsense ({error})")
            except OSError as error:
                death = _Death(f"its socket failed ({error})")
        code, by_us = _end(child, at_once=death.hung)
        self._child = None
        if not death.reason:
            short = oom_kills() > killed
            # What the engine needs was there when it was loaded, so somebody else has taken the memory since.
            outside = not by_us and -code in (signal.SIGKILL, signal.SIGTERM)
            what = "it closed its socket and did not end" if by_us else obituary(code)
            reason = f"{what}{' because memory ran out' if short else ''}"
            if code == -signal.SIGILL and death.loading:
                death = self._do_without_repacking(reason)
            else:
                death = _Death(reason, "out_of_memory" if short and death.loading else "", outside)
        return replace(death, reason=f"{death.reason}{dialogue.last_words()}")

    def _do_without_repacking(self, reason: str) -> _Death:
        """Have the next child leave out llama.cpp's most special instructions: better slow than not at all."""
        if not self._load.repack:
            return _Death(reason, "unavailable")
        self._load = replace(self._load, repack=False)
        return _Death(f"{reason}; until then the model is computed more slowly, without repacked weights")

    def _spawn(self, theirs: socket.socket, pulse: Pulse) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own module, no shell
            [*self._command, str(pulse.fd), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[pulse.fd, theirs.fileno()],
            env=ENVIRONMENT | os.environ,
            start_new_session=True,  # signals of a terminal are the daemon's to handle
        )

    def _converse(self, dialogue: _Dialogue, pulse: Pulse, watch: Watch) -> _Death:
        """Pass orders and reports until the child is gone, or is to go; returns why, where it is not just gone."""
        dialogue.send(self._load)
        loading = True
        while not self._stopping.is_set():
            for report in dialogue.wait(watch.timeout(time.monotonic())):
                watch.heard(report)
                if isinstance(report, Ready):
                    loading, self._ready_at = False, time.monotonic()
                    self._load = replace(self._load, digest=report.digest)  # the next child need not read it all
                self._report(self._number, report)
                if isinstance(report, Failed):
                    return _Death(report.message, report.error)
            if dialogue.ended:
                return _Death(loading=loading)
            while self._orders:
                number, order = self._orders.popleft()
                if number == self._number:
                    dialogue.send(order)
                    watch.sent(order)
                    if isinstance(order, Cancel) and order.uid in watch.at_work:
                        _abort(pulse)
            if why := watch.look(time.monotonic()):
                return _Death(why, hung=True)
        return _Death()


@dataclass(frozen=True, slots=True)
class _Death:
    """Why a child is gone, or to go.

    Attributes:
        reason: empty where its exit code has to tell.
        error: why it could not load its model; empty where it had, or nobody knows.
        outside: it was killed from outside.
        hung: it does not react, so it need not be asked to end.
        loading: it had not loaded its model yet.
    """

    reason: str = ""
    error: str = ""
    outside: bool = False
    hung: bool = False
    loading: bool = False


class _Dialogue:
    """One child's three streams in one selector: its reports, its standard error, and the daemon's wake-up."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        sock: socket.socket,
        child: subprocess.Popen[bytes],
        woken: socket.socket,
    ) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        assert child.stderr is not None  # noqa: S101 - it was started with a pipe
        self._stderr: IO[bytes] = child.stderr
        os.set_blocking(self._stderr.fileno(), False)
        self._woken = woken
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._tail = b""
        self._selector = selector
        for source in (self._socket, self._stderr, self._woken):
            self._selector.register(source, selectors.EVENT_READ)
        self.ended = False

    def send(self, order: Order) -> None:
        """Send an order, or keep it until the child reads again."""
        self._unsent += encode(order)
        self._flush()

    def wait(self, timeout_s: float | None) -> list[Report]:
        """Wait until something happens, at most so long; the reports that came."""
        reports: list[Report] = []
        for key, mask in self._selector.select(timeout_s):
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


def _stamp(path: str) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written to; None where it is not there."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _abort(pulse: Pulse) -> None:
    """Have the child read its orders soon, if it is in a step that has long to go, or nobody knows how long."""
    if pulse.turn % 2 and not pulse.again and not 0 < pulse.expected_s < _WORTH_ABORTING_S:
        pulse.abort()


def oom_kills() -> int:
    """How many processes of this control group the kernel has killed for want of memory; 0 where it does not say."""
    counts = (
        cgroup.number(group, name, "oom_kill")
        for group in cgroup.groups("memory")
        for name in ("memory.events", "memory.oom_control")
    )
    return next((count for count in counts if count is not None), 0)


def _end(child: subprocess.Popen[bytes], *, at_once: bool) -> tuple[int, bool]:
    """Wait for a child whose socket is closed, kill it if it does not end; returns its exit code, and if it was."""
    if at_once:
        child.kill()
    try:
        return child.wait(_GRACE_S), at_once
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait(), True


def obituary(code: int) -> str:
    """How a process ended, by its exit code as `subprocess` tells it."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    if code == -signal.SIGILL:
        return (
            "its process was ended by SIGILL: llama.cpp was compiled with instructions that do not work here; compile "
            'it anew on this machine, as the README says under "Install and run"'
        )
    try:
        return f"its process was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process was ended by signal {-code}"
