"""An engine for the core's tests: real answers token by token, text held back, and a death whenever the test wants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edged.core.events import Cancel, Delta, EngineLost, EngineStep, Finished, Generate
from tests.core.world import World

#: Text of one, two, three and four bytes in UTF-8 per character.
_PIECES = ("a ", "é", "—", "🦉 ")


def answer(prompt: str, length: int) -> list[str]:
    """What the model says to a prompt, token by token."""
    return [f"{prompt}{i}{_PIECES[i % len(_PIECES)]}" for i in range(length)]


def text(prompt: str, length: int) -> str:
    """The same, in one piece."""
    return "".join(answer(prompt, length))


def token(prompt: str, index: int) -> int:
    """The id of one of its tokens."""
    return 1000 * len(prompt) + 31 * index + ord(prompt[0])


@dataclass
class _Sequence:
    order: Generate
    prompt: str
    at: int  # tokens of the answer that it has
    held: list[int] = field(default_factory=list)  # those of them whose text has not been given out


class SimulatedEngine:
    """Runs what the core gives it. Of some tokens the text is held back, as for a stop string that may come.

    Args:
        world: the core's.
        lengths: tokens of the answer to each prompt.
        parallel: requests at the same time.
        poison: prompts that kill the engine, and at which token.
    """

    def __init__(
        self, world: World, lengths: dict[str, int], *, parallel: int = 8, poison: dict[str, int] | None = None
    ) -> None:
        self._world = world
        self._lengths = lengths
        self._parallel = parallel
        self._poison = poison or {}
        self._read = 0
        self._sequences: dict[int, _Sequence] = {}
        self.deaths = 0
        self.most = 0

    @property
    def idle(self) -> bool:
        self._take_orders()
        return not self._sequences

    @property
    def prompts(self) -> list[str]:
        """Of what runs."""
        self._take_orders()
        return [sequence.prompt for sequence in self._sequences.values()]

    def step(self) -> None:
        """One token for each that runs, or the end of the engine."""
        self._take_orders()
        if any(s.at == self._poison.get(s.prompt) for s in self._sequences.values()):
            self.die()
            return
        deltas, finished = [], []
        for uid, sequence in list(self._sequences.items()):
            sequence.held.append(sequence.at)
            sequence.at += 1
            last = sequence.at == self._lengths[sequence.prompt]
            if last or sequence.at % 3:
                deltas.append(self._release(sequence))
            if last:
                finished.append(Finished(uid, "stop", prompt_tokens=5, completion_tokens=sequence.at))
                del self._sequences[uid]
        self._world.time += 0.015
        self._tell(deltas=tuple(deltas), finished=tuple(finished))

    def die(self, **how: Any) -> None:
        """Take everything along; the next one is there at once."""
        self._take_orders()
        self.deaths += 1
        self._sequences.clear()
        self._world.tell(EngineLost("m", "it died", **how))
        self._world.ready("m", self._parallel)

    def run(self, most: int = 10_000) -> None:
        """Go on until nothing is left to do."""
        for _ in range(most):
            if self.idle:
                return
            self.step()
        raise AssertionError(f"still running after {most} steps: {self.prompts}")

    def _take_orders(self) -> None:
        new, self._read = self._world.effects[self._read :], len(self._world.effects)
        for effect in new:
            if isinstance(effect, Generate):
                assert effect.messages is not None
                prompt = effect.messages[-1][1]
                count = len(effect.generated)
                assert effect.uid not in self._sequences
                assert list(effect.generated) == [token(prompt, i) for i in range(count)]
                self._sequences[effect.uid] = _Sequence(effect, prompt, count)
                self.most = max(self.most, len(self._sequences))
            elif isinstance(effect, Cancel) and effect.uid in self._sequences:
                sequence = self._sequences.pop(effect.uid)
                # What was held back is given out after all: nothing comes that it could be the beginning of.
                deltas = (self._release(sequence),) if sequence.held else ()
                self._tell(deltas=deltas, finished=(Finished(effect.uid, "cancelled"),))

    def _release(self, sequence: _Sequence) -> Delta:
        held, sequence.held = sequence.held, []
        pieces = answer(sequence.prompt, sequence.at)
        tokens = tuple(token(sequence.prompt, i) for i in held)
        return Delta(sequence.order.uid, "".join(pieces[i] for i in held), tokens)

    def _tell(self, **what: Any) -> None:
        self._world.tell(EngineStep("m", **what))
        self._take_orders()
