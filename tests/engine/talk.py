"""Asks a real engine, and sorts what it says by request."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from edged.engine.protocol import Cancel, Finished, Generate, Hold, Note, Ready, Release, Step
from tests.engine.handles import Handle

#: Greedy, and nothing else in force.
DEFAULTS: dict[str, Any] = {
    "max_tokens": 16,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": 1,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def counting(start: int = 1, length: int = 7) -> str:
    """A raw prompt that even the smallest model goes on with for long: `1, 2, 3,`."""
    return ",".join([str(start), *(f" {n}" for n in range(start + 1, start + length))]) + ","


def counted(start: int, numbers: int) -> str:
    """How an answer to that begins."""
    return "".join(f" {n}," for n in range(start, start + numbers))


@dataclass(slots=True)
class Answer:
    """What the engine has said about one request so far.

    Attributes:
        deltas: (text, number of tokens) of each.
        ids: of all tokens.
        prefill: (done, total) of each.
    """

    deltas: list[tuple[str, int]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    prefill: list[tuple[int, int]] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.deltas)

    @property
    def tokens(self) -> int:
        """How many the deltas say they are."""
        return sum(tokens for _, tokens in self.deltas)

    @property
    def end(self) -> Finished:
        assert self.finished is not None
        return self.finished


class Talk:
    """Requests to one child of a handle, one after the other or together."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._uids = itertools.count(1)
        self.child, self.ready = handle.next(Ready)
        self.answers: dict[int, Answer] = {}

    @property
    def notes(self) -> list[Note]:
        """What the engine has logged so far."""
        return [report for _, report in self._handle.heard if isinstance(report, Note)]

    def ask(self, prompt: str | None = None, **fields: Any) -> int:
        """Send a request; returns its uid."""
        uid = next(self._uids)
        self.answers[uid] = Answer()
        self._handle.send(Generate(uid=uid, prompt=prompt, **(DEFAULTS | fields)), child=self.child)
        return uid

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is asked within comes together, however long the asking takes: until its end the child stands still."""
        pid = self._handle.engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def cancel(self, uid: int) -> None:
        self._handle.send(Cancel(uid), child=self.child)

    def hold(self, uid: int) -> None:
        self._handle.send(Hold(uid), child=self.child)

    def release(self, uid: int) -> None:
        self._handle.send(Release(uid), child=self.child)

    def listen(self) -> Step:
        """Wait for one step of the engine."""
        _, step = self._handle.next(Step)
        for uid, text, tokens in step.deltas:
            assert self.answers[uid].finished is None, "nothing comes after the end"
            self.answers[uid].deltas.append((text, len(tokens)))
            self.answers[uid].ids += tokens
        for uid, done, total in step.prefill:
            self.answers[uid].prefill.append((done, total))
        for one in step.finished:
            assert self.answers[one.uid].finished is None, "there is one end"
            self.answers[one.uid].finished = one
        return step

    def finish(self, *uids: int) -> list[Answer]:
        """Wait for the ends of these requests."""
        while any(self.answers[uid].finished is None for uid in uids):
            self.listen()
        return [self.answers[uid] for uid in uids]

    def say(self, prompt: str | None = None, **fields: Any) -> Answer:
        """Ask alone, and wait for the end."""
        [answer] = self.finish(self.ask(prompt, **fields))
        return answer
