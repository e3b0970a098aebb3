"""A model without a model: a KV cache that checks what it is told, tokens that can be foretold, and costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from edged.engine.scheduler import Scheduler, Slice
from edged.engine.sequence import Sequence, State
from edged.engine.text import TextStream


class NoSampler:
    """The simulated model knows its tokens itself."""

    def sample(self, context: int, index: int) -> int:
        raise AssertionError(f"nobody samples here: {context}, {index}")

    def close(self) -> None:
        """Nothing is held."""


def sequence(uid: int, *, prompt: int, max_tokens: int = 1000) -> Sequence:
    """A request with so many tokens of prompt, all different from those of others."""
    tokens = [-(uid * 10_000 + i) for i in range(prompt)]
    return Sequence(uid=uid, tokens=tokens, max_tokens=max_tokens, sampler=NoSampler(), text=TextStream())


def token(uid: int, position: int) -> int:
    """What the model says at that position of the sequence."""
    return uid * 10_000 + position


@dataclass(frozen=True, slots=True)
class Step:
    """What was computed: tokens of prefill and sequences that were decoding, by uid; and what it took, seconds."""

    decoded: list[int]
    prefilled: dict[int, int]
    seconds: float


@dataclass(slots=True)
class Machine:
    """Runs a scheduler's plans as the worker does, and raises where one makes no sense.

    Attributes:
        cost: seconds of a step with so many decoding sequences and so many tokens of prefill.
        answers: how many tokens the model says before it ends by itself; 1000 where nothing stands here.
    """

    cells: int = 64
    slots: int = 4
    batch: int = 16
    itl_target_s: float = 0.1
    cost: Callable[[int, int], float] = lambda decoding, prefill: 0.01 + 0.001 * decoding + 0.002 * prefill
    answers: dict[int, int] = field(default_factory=dict)
    scheduler: Scheduler = field(init=False)
    cache: dict[int, list[int]] = field(default_factory=dict)
    finished: dict[int, tuple[str, Sequence]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(cells=self.cells, slots=self.slots, batch=self.batch, itl_target_s=self.itl_target_s)

    def step(self) -> Step | None:
        """One turn of the worker's loop; None when there was nothing to do."""
        decoding = [s for s in self.scheduler.running if s.is_decoding]
        slices = self.scheduler.plan()
        for slot in self.scheduler.take_preempted():
            del self.cache[slot]
        if not slices:
            return None
        self._check(slices, decoding)
        step = Step(
            decoded=[s.sequence.uid for s in slices if s.sequence.is_decoding],
            prefilled={s.sequence.uid: s.count for s in slices if not s.sequence.is_decoding},
            seconds=0.0,
        )
        for piece in slices:
            self._compute(piece)
        prefill = sum(step.prefilled.values())
        seconds = self.cost(len(step.decoded), prefill)
        self.scheduler.costs.learn(decoding=len(step.decoded), prefill=prefill, seconds=seconds)
        return Step(step.decoded, step.prefilled, seconds)

    def run(self, most: int = 20_000) -> list[Step]:
        """Step until there is nothing to do."""
        steps = []
        while (step := self.step()) is not None:
            steps.append(step)
            assert len(steps) < most, "it does not come to an end"
        assert self.scheduler.idle
        return steps

    def finish(self, sequence: Sequence, reason: str) -> None:
        """End a sequence, as the worker does for whatever reason."""
        slot = self.scheduler.remove(sequence)
        self.cache.pop(slot, None)
        self.finished[sequence.uid] = reason, sequence

    def _check(self, slices: list[Slice], decoding: list[Sequence]) -> None:
        assert sum(s.count for s in slices) <= self.batch
        assert all(s.count >= 1 for s in slices)
        assert len({s.sequence.uid for s in slices}) == len(slices)
        assert len({s.sequence.slot for s in slices}) == len(slices) <= self.slots
        assert all(0 <= s.sequence.slot < self.slots and s.sequence.state is State.RUNNING for s in slices)
        for one in decoding:
            if one.state is State.RUNNING:  # not preempted by this plan
                assert [s.count for s in slices if s.sequence is one] == [1]

    def _compute(self, piece: Slice) -> None:
        one = piece.sequence
        cached = self.cache.setdefault(one.slot, [])
        assert len(cached) == one.computed, "positions have to follow each other, and a slot's old cells to be gone"
        completes = piece.completes
        cached += one.tokens[one.computed : one.computed + piece.count]
        one.computed += piece.count
        one.reached = max(one.reached, min(one.computed, one.prompt_tokens))
        assert cached == one.tokens[: one.computed]
        assert sum(map(len, self.cache.values())) <= self.cells
        if not completes:
            return
        if one.generated >= self.answers.get(one.uid, 1000):
            self.finish(one, "stop")
            return
        one.tokens.append(token(one.uid, len(one.tokens)))
        if one.generated >= one.max_tokens or not self.scheduler.has_room(one):
            self.finish(one, "length")
