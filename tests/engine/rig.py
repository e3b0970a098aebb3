"""A worker in the test's own process, whose turns the test takes."""

from __future__ import annotations

import ctypes
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import llama_cpp as llama

from edged.engine.aside import Aside
from edged.engine.channel import Channel
from edged.engine.model import LogTap, Model
from edged.engine.prefiller import Prefiller
from edged.engine.protocol import Cancel, Decoder, Generate, Load, Note
from edged.engine.pulse import Pulse
from edged.engine.sequence import Sequence
from edged.engine.worker import Worker
from tests.engine.kinds import letters
from tests.engine.simulated import Priced
from tests.engine.talk import DEFAULTS

PATIENCE_S = 60.0


class Rig:
    """A worker with two threads. So short a target leaves a prompt a few tokens in each step of others.

    Args:
        path: of a model that `kinds` has written.
        fields: of `Load`, where they are to be others.

    Attributes:
        logged: what llama.cpp has logged.
        said: tokens by uid.
        progress: tokens of the prompt that were computed, by uid.
    """

    def __init__(self, path: Path, **fields: Any) -> None:
        self._here, self._there = socket.socketpair()
        self._there.setblocking(False)
        self._decoder, self._notes = Decoder(), list[Note]()
        self.logged = list[str]()
        self.log, self.pulse = LogTap(lambda _level, line: self.logged.append(line)), Pulse()
        shape = {"context": 2048, "parallel": 4, "threads": 2, "flash_attention": "off", "itl_target_ms": 0.001}
        load = Load(path=str(path), **{**shape, **fields})
        self.model = Model(load, on_progress=lambda _fraction: None, log=self.log)
        self.worker = Worker(Channel(self._here), self.model, self.pulse, load)
        self.worker.try_out()
        self.worker._scheduler.costs = Priced()
        self.said: dict[int, list[int]] = {}
        self.progress: dict[int, list[int]] = {}

    @property
    def prefiller(self) -> Prefiller:
        return self.worker._prefiller

    @property
    def aside(self) -> Aside:
        found = self.prefiller._aside
        assert found is not None
        return found

    def is_aside(self) -> bool:
        """Whether a prompt is computed aside."""
        return self.prefiller.is_busy

    def threads(self) -> int:
        """With how many llama.cpp computes."""
        return int(llama.llama_n_threads(self.model.context.pointer))

    def notes(self) -> list[Note]:
        """All that the daemon was told besides what comes of requests."""
        with suppress(BlockingIOError):
            self._notes += [one for one in self._decoder.feed(self._there.recv(1 << 16)) if isinstance(one, Note)]
        return self._notes

    def ask(self, uid: int, prompt: str, **fields: Any) -> Sequence:
        self.said[uid], self.progress[uid] = [], []
        self.worker._obey(Generate(uid=uid, prompt=prompt, **(DEFAULTS | {"max_tokens": 1500} | fields)))
        self.turn()
        found = self.worker._scheduler.find(uid)
        assert found is not None
        return found

    def cancel(self, uid: int) -> None:
        self.worker._obey(Cancel(uid))

    def turn(self) -> None:
        self.prefiller.tend()
        if slices := self.worker._scheduler.plan():
            self.worker._step(slices)
        report = self.worker._unsent.take(time.monotonic())
        for uid, _, tokens in report.deltas:
            self.said[uid] += tokens
        for uid, done, _ in report.prefill:
            self.progress[uid].append(done)
        if self.worker._defragmenter is not None:
            self.worker._defragmenter.tend()

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Let the worker run by itself until something is true, and then lose its daemon."""
        deadline = time.monotonic() + PATIENCE_S
        thread = threading.Thread(target=self.worker.run)
        thread.start()
        while not (met := condition()) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._there.shutdown(socket.SHUT_WR)
        thread.join(PATIENCE_S)
        assert met

    def until_said(self, uid: int, tokens: int) -> list[int]:
        """Turn until one has said so many tokens, and return these."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.said[uid]) < tokens:
            self.turn()
            assert time.monotonic() < deadline
        return self.said[uid][:tokens]

    def until_over(self) -> None:
        """Turn until nobody is aside any more."""
        deadline = time.monotonic() + PATIENCE_S
        while self.prefiller._aside is not None or any(s.is_aside for s in self.worker._scheduler.running):
            self.turn()
            assert time.monotonic() < deadline

    def both(self, **fields: Any) -> Sequence:
        """One that generates, and a long prompt that is computed aside, of which nothing has come back yet.

        Its beginning was computed before, for another request.
        """
        self.ask(3, letters(100, 2))
        self.cancel(3)
        self.ask(1, letters(20, 1))
        long = self.ask(2, letters(600, 2), **fields)
        self.prefiller.tend()
        assert long.is_aside
        assert long.computed == 102  # BOS and a space
        return long

    def close(self) -> None:
        self.prefiller.close()
        self.model.close()
        llama.llama_log_set(llama.llama_log_callback(), ctypes.c_void_p(0))
        self.pulse.close()
        self._here.close()
        self._there.close()


def said_alone(path: Path, prompt: str, tokens: int) -> list[int]:
    """The beginning of an answer to a request that has had all to itself."""
    rig = Rig(path)
    try:
        rig.ask(1, prompt)
        return rig.until_said(1, tokens)
    finally:
        rig.close()
