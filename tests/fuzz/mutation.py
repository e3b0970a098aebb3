"""A small coverage-guided fuzzer: an input that reaches new lines, or is refused in new words, is kept and changed on.

The lines are those of the package, by `sys.settrace`. What pydantic does is not Python's, so the words of an error
count as a place that was reached, without names and numbers.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import edged
from tests.fuzz.decoders import LONGEST, Target

_PACKAGE = str(Path(edged.__file__).parent)
#: CPU seconds that one input may take: far from what any takes, and a hang all the same.
_HANG_S = 5.0
#: What decoding may need for each byte of the input, and besides. Bytes.
_MEMORY_FACTOR, _MEMORY_BASE = 256, 1024 * 1024
_VARIABLE = re.compile(r"[`'\"].*[`'\"]|0x[0-9a-f]+|\S*\.\S+|\d+", re.DOTALL)
#: What breaks decoders, as text.
_TOKENS = [
    *'{}[]:,"', "null", "true", "NaN", "Infinity", "-Infinity", "-0", "1e400", "-1", "1.0", "9" * 400, str(2**53),
    str(2**63), str(2**64), '"\\ud800"', '"\\u0000"', "\\", "\ufeff", "\x00", "\uffff", "\U0010ffff", "é", "$", "+",
    "#", "/", "//", " ", "\n", '{"a":' * 30, "[" * 300, '"gen":0,', '"gen":2,', '"seq":0,', '"from_seq":', "replay",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 1e308, float("nan"), float("inf"), 2**31, 2**32, 2**53, 2**64, 10**40, "", "1",
    "\ud800", "\x00", "x" * 300, [], {}, [[]], {"": ""}, [None], ["x"] * 20,
]  # fmt: skip


Mutation = Callable[[bytes, Random], bytes]


class FuzzError(AssertionError):
    """A decoder broke its promise.

    Attributes:
        data: the input, made as short as could be.
    """

    def __init__(self, why: str, data: bytes) -> None:
        super().__init__(f"{why}\ninput of {len(data)} bytes: {data[:2000]!r}")
        self.data = data


@dataclass
class Fuzzer:
    """Fuzzes one decoder.

    Attributes:
        target: the decoder.
        random: whatever is chosen is chosen by it.
        corpus: the inputs that reached something new, the seeds first.
        places: what was reached.
        executions: inputs that were tried.
        traced: the lines of files under this path count.
    """

    target: Target
    random: Random
    corpus: list[bytes] = field(default_factory=list)
    places: set[object] = field(default_factory=set)
    executions: int = 0
    traced: str = _PACKAGE

    def run(self, *, more: Callable[[], bool]) -> None:
        """Go on while `more` says so.

        Raises:
            FuzzError: an input broke a promise.
        """
        for seed in self.target.seeds if not self.corpus else ():
            self.try_one(seed[:LONGEST])
        while more():
            self.try_one(self._mutated())

    def try_one(self, data: bytes) -> None:
        """Decode an input twice, and keep it if it reached something new.

        Raises:
            FuzzError: it broke a promise.
        """
        self.executions += 1
        reached: set[object] = set()
        try:
            with _traced(self.traced, reached):
                outcome = self._outcome(data)
        except Exception as error:
            short = self._shortened(data, type(error))
            raise FuzzError(f"{type(error).__name__}: {error}", short) from error
        if outcome.startswith("refused "):
            reached.add(_VARIABLE.sub("", outcome)[:120])
        if not reached <= self.places or not self.corpus:
            self.places |= reached
            self.corpus.append(data)
            if (again := self._measured(data)) != outcome:
                raise FuzzError(f"decoded once it is {outcome[:500]}, and then {again[:500]}", data)

    def _outcome(self, data: bytes) -> str:
        """What becomes of an input, in a few words; whatever is not documented passes."""
        begun = time.thread_time()
        try:
            outcome = f"read {self.target.decode(data)!r}"
        except self.target.errors as error:
            if type(error) not in self.target.errors:
                raise
            outcome = f"refused {type(error).__name__} {error}"
        took_s = time.thread_time() - begun
        assert took_s < _HANG_S, f"it took {took_s:.1f} s"
        return outcome

    def _measured(self, data: bytes) -> str:
        """The outcome once more, while memory is counted."""
        gc.collect()
        tracemalloc.start()
        try:
            outcome = self._outcome(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        if peak > _MEMORY_BASE + _MEMORY_FACTOR * len(data):
            raise FuzzError(f"it took {peak} bytes of memory", data)
        return outcome

    def _shortened(self, data: bytes, kind: type[Exception]) -> bytes:
        """A shorter input that fails in the same way."""
        size = len(data) // 2
        while size:
            at = 0
            while at < len(data):
                shorter = data[:at] + data[at + size :]
                try:
                    self._outcome(shorter)
                    at += size
                except Exception as error:  # noqa: BLE001 - that it fails is what is looked for
                    if type(error) is kind:
                        data = shorter
                    else:
                        at += size
            size //= 2
        return data

    def _mutated(self) -> bytes:
        random = self.random
        # The newest have been changed the least; half of the time it is one of them.
        pool = self.corpus[-8:] if random.random() < 0.5 else self.corpus
        data = random.choice(pool)
        ways: tuple[Mutation, ...] = (_flip, _cut, _repeat, _insert, _insert, self._splice, _reword, _reword)
        for _ in range(random.choice((1, 1, 2, 4))):
            data = random.choice(ways)(data, random)
        return data[:LONGEST]

    def _splice(self, data: bytes, random: Random) -> bytes:
        other = random.choice(self.corpus)
        return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


def _flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data or b"\0")
    changed[random.randrange(len(changed))] = random.choice((0, 0x7F, 0x80, 0xFF, random.randrange(256)))
    return bytes(changed)


def _slice(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.choice((1, 2, 8, 64, len(data))))


def _cut(data: bytes, random: Random) -> bytes:
    start, end = _slice(data, random)
    return data[:start] + data[end:]


def _repeat(data: bytes, random: Random) -> bytes:
    start, end = _slice(data, random)
    return data[:end] + data[start:end] * random.choice((1, 1, 2, 50)) + data[end:]


def _insert(data: bytes, random: Random) -> bytes:
    start, end = _slice(data, random)
    token: str = random.choice(_TOKENS)
    return data[:start] + token.encode() + data[random.choice((start, end)) :]


def _reword(data: bytes, random: Random) -> bytes:
    """Of one line's JSON, change one value or name; anything else as it is. A frame's length is made to fit."""
    at = random.randrange(data.count(b"\n") + 1)
    lines = data.split(b"\n")
    head = lines[at][:4] if b"{" in lines[at][4:5] else b""
    try:
        value = json.loads(lines[at][len(head) :])
        changed = json.dumps(_changed(value, random)).encode()
    except (ValueError, RecursionError):
        return data
    lines[at] = (len(changed).to_bytes(4, "little") if head else b"") + changed
    return b"\n".join(lines)


def _changed(value: Any, random: Random) -> Any:
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return random.choice(_VALUES)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = random.choice(keys)
    dice = random.random()
    if isinstance(value, dict) and dice < 0.2:
        value[random.choice(("id", "type", "gen", "stop", "messages", "x", ""))] = value.pop(key)
    elif dice < 0.3:
        del value[key]
    else:
        value[key] = _changed(value[key], random)
    return value


@contextmanager
def _traced(path: str, reached: set[object]) -> Iterator[None]:
    """Note which line under `path` followed upon which."""

    def enter(frame: FrameType, _event: str, _arg: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(path):
            return None
        last = 0

        def step(frame: FrameType, _event: str, _arg: object) -> Any:
            nonlocal last
            reached.add((code, last, frame.f_lineno))
            last = frame.f_lineno
            return step

        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)
