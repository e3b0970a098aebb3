"""An engine: answers that follow from prompt and seed alone, deaths, and prompts that bring them about."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from edged.core.events import Cancel, Delta, EngineLost, EngineReady, EngineStep, Finished, Generate, Hold, Release
from edged.wire.errors import ErrorCode
from edged.wire.messages import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable

    from edged.core.events import EngineLoading
    from tests.simulation.checks import Checks
    from tests.simulation.clock import Agenda

#: Text of one to four bytes in UTF-8 per character, and none at all.
_PIECES = ("a", "bc ", "é", "—", "🦉", "\n", '"', "x y")


@dataclass(frozen=True, slots=True)
class Script:
    """How a prompt behaves.

    Attributes:
        length: tokens of its whole answer.
        poison_at: at this token it kills the engine.
        outside: and that looks as if somebody else had done it.
        deep: and takes the daemon along.
        stuck_at: from this token on nothing more comes.
    """

    length: int
    poison_at: int | None = None
    outside: bool = False
    deep: bool = False
    stuck_at: int | None = None


@lru_cache(maxsize=256)
def answer(prompt: str, seed: int, length: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """What the model says: the ids of the tokens, and the text of each."""
    rng = random.Random(f"{prompt}/{seed}")
    tokens = tuple(rng.randrange(1, 2**31) for _ in range(length))
    return tokens, tuple(_PIECES[token % len(_PIECES)] for token in tokens)


@dataclass
class _Sequence:
    order: Generate
    script: Script
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    at: int
    most: int
    told: int
    held: bool = field(default=False)


class Engine:
    """One model's child processes, one after the other.

    Args:
        scripts: by prompt.
        post: takes the reports; belongs to one daemon.
        deadly: called where a prompt takes the daemon along.
    """

    def __init__(
        self,
        agenda: Agenda,
        rng: random.Random,
        checks: Checks,
        scripts: dict[str, Script],
        *,
        parallel: int,
        pace_s: float,
        post: Callable[[EngineLoading | EngineLost | EngineReady | EngineStep], None],
        deadly: Callable[[], None],
    ) -> None:
        self._agenda = agenda
        self._rng = rng
        self._checks = checks
        self._scripts = scripts
        self._parallel = parallel
        self._pace_s = pace_s
        self._post = post
        self._deadly = deadly
        self._sequences: dict[int, _Sequence] = {}
        self._child = 0
        self._turning = False
        self.loaded = False
        self.gone = False

    def start(self, seconds: float) -> None:
        """Load the model, which takes so long."""
        self._child += 1
        child = self._child
        self._agenda.after(seconds, lambda: self._ready(child))

    def _ready(self, child: int) -> None:
        if child == self._child and not self.gone:
            self.loaded = True
            self._post(EngineReady("m", ModelCard(alias="m", file="m.gguf", context=4096, parallel=self._parallel)))

    def die(self, *, outside: bool, error: ErrorCode | None = None, again_s: float = 0.1) -> None:
        """The child is gone, with all that it had; the next one is on its way."""
        if self.gone:
            return
        self._checks.note(f"engine dies{' from outside' if outside else ''}: {list(self._sequences)} {error or ''}")
        self._sequences.clear()
        self.loaded = False
        self._post(EngineLost("m", "it died", error, outside=outside, retry_in_s=again_s))
        self.start(again_s + self._rng.random())

    def vanish(self) -> None:
        """The daemon is gone, and its children with it."""
        self.gone = True

    def tell(self, order: Generate | Cancel | Hold | Release) -> None:
        """An order for the child that runs now; it is on its way for a moment, and lost if that dies meanwhile."""
        child = self._child if self.loaded else None
        self._agenda.after(0.001, lambda: self._take(order) if child == self._child and self.loaded else None)

    def _take(self, order: Generate | Cancel | Hold | Release) -> None:
        if self.gone:
            return
        if isinstance(order, Generate):
            self._begin(order)
        elif (sequence := self._sequences.get(order.uid)) is not None:
            if isinstance(order, Cancel):
                del self._sequences[order.uid]
                deltas = self._release(sequence) if self._rng.random() < 0.5 else ()
                self._report(deltas, (self._finished(sequence, "cancelled"),))
            else:
                sequence.held = isinstance(order, Hold)
        self._wake()

    def _begin(self, order: Generate) -> None:
        assert order.messages is not None
        prompt, seed = order.messages[-1][1], order.sampling.seed
        script = self._scripts[prompt]
        tokens, pieces = answer(prompt, seed, script.length)
        self._checks.begins(order, tokens, busy=order.uid in self._sequences or len(self._sequences) >= self._parallel)
        at = len(order.generated)
        most = min(script.length, order.sampling.max_tokens)
        self._sequences[order.uid] = _Sequence(order, script, tokens, pieces, at, most, at)

    def _wake(self) -> None:
        if self._sequences and not self._turning:
            self._turning = True
            child = self._child
            self._agenda.after(self._pace_s * (0.5 + self._rng.random()), lambda: self._turn(child))

    def _turn(self, child: int) -> None:
        self._turning = False
        if self.gone:
            return
        if child != self._child:
            self._wake()
            return
        deltas: list[Delta] = []
        finished: list[Finished] = []
        for uid, sequence in list(self._sequences.items()):
            script = sequence.script
            if sequence.held:
                continue
            if script.poison_at is not None and sequence.at >= script.poison_at:
                self.die(outside=script.outside)
                if script.deep:
                    self._deadly()
                return
            if sequence.at < sequence.most and (script.stuck_at is None or sequence.at < script.stuck_at):
                sequence.at += 1
            last = sequence.at >= sequence.most
            if last or self._rng.random() < 0.7:
                deltas += self._release(sequence)
            if last:
                del self._sequences[uid]
                finished.append(self._finished(sequence, "stop" if sequence.at == script.length else "length"))
        self._report(tuple(deltas), tuple(finished))
        self._wake()

    def _release(self, sequence: _Sequence) -> tuple[Delta, ...]:
        since, sequence.told = sequence.told, sequence.at
        if since == sequence.at:
            return ()
        words = "".join(sequence.pieces[since : sequence.at])
        return (Delta(sequence.order.uid, words, sequence.tokens[since : sequence.at]),)

    def _report(self, deltas: tuple[Delta, ...], finished: tuple[Finished, ...]) -> None:
        if deltas or finished:
            self._post(EngineStep("m", deltas=deltas, finished=finished))

    @staticmethod
    def _finished(sequence: _Sequence, reason: str) -> Finished:
        return Finished(sequence.order.uid, reason, prompt_tokens=5, completion_tokens=sequence.told)
