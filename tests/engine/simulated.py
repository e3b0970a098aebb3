"""A model without a model: a KV cache that checks what it is told, tokens that can be foretold, and costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from edged.engine.costs import Costs
from edged.engine.prefix import PrefixCache
from edged.engine.scheduler import Scheduler, Slice
from edged.engine.sequence import Sequence
from edged.engine.text import TextStream


class Priced(Costs):
    """A token of prefill costs so much, whatever the clock says: the same steps are planned every time."""

    def __init__(self) -> None:
        super().__init__()
        self.prefill_s = 1e-4

    def learn(self, *, decoding: int, prefill: int, seconds: float) -> None:
        pass


class NoSampler:
    """The simulated model knows its tokens itself."""

    def sample(self, context: int, index: int) -> int:
        raise AssertionError(f"nobody samples here: {context}, {index}")

    def close(self) -> None:
        """Nothing is held."""


def sequence(
    uid: int,
    *,
    prompt: int | list[int],
    max_tokens: int = 1000,
    owner: str = "",
    shared: int = 0,
    exact: bool = False,
) -> Sequence:
    """A request with so many tokens of prompt, all different from those of others, or with just these tokens."""
    tokens = [-(uid * 10_000 + i) for i in range(prompt)] if isinstance(prompt, int) else list(prompt)
    return Sequence(
        uid=uid,
        tokens=tokens,
        max_tokens=max_tokens,
        sampler=NoSampler(),
        text=TextStream(),
        owner=owner,
        shared=shared,
        exact=exact,
    )


def token(uid: int, position: int) -> int:
    """What the model says at that position of the sequence."""
    return uid * 10_000 + position


@dataclass(slots=True, eq=False)
class Cell:
    """What was computed once, and for whom (None = the operator's words).

    Attributes:
        index: which one it is.
        among: those positions of its sequence that were computed at once; empty where others were among them.
    """

    token: int
    owner: str | None
    index: int
    among: range = range(0)


class Cells:
    """The cells of a KV cache, by sequence and position, as llama.cpp's unified cache has them."""

    def __init__(self) -> None:
        self.of: dict[int, dict[int, Cell]] = {}
        self.whole_only = False

    def free(self) -> Iterator[int]:
        """The cells that are free, in the order in which llama.cpp takes them."""
        taken = {cell.index for cells in self.of.values() for cell in cells.values()}
        return (index for index in itertools.count() if index not in taken)

    def compute(self, sequence: int, start: int, tokens: list[int], owner: str | None) -> None:
        """Put tokens of one owner into cells."""
        cells, free = self.of.setdefault(sequence, {}), self.free()
        for position, token in enumerate(tokens, start):
            cells[position] = Cell(token, owner, next(free))

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        cells = self.of.setdefault(target, {})
        for position in range(start, end):
            if (cell := self.of.get(source, {}).get(position)) is not None:
                assert position not in cells, "a sequence has one cell at a position"
                cells[position] = cell

    def drop(self, sequence: int, start: int = 0, end: int | None = None) -> bool:
        if self.whole_only and (start, end) != (0, None):
            return False
        cells = self.of.get(sequence, {})
        for position in [p for p in cells if p >= start and (end is None or p < end)]:
            del cells[position]
        if not cells:
            self.of.pop(sequence, None)
        return True

    @property
    def used(self) -> int:
        """How many are not free."""
        return len({id(cell) for cells in self.of.values() for cell in cells.values()})

    def tokens(self, sequence: int) -> list[int]:
        """What a sequence has, without a hole."""
        cells = self.of.get(sequence, {})
        assert cells.keys() == set(range(len(cells)))
        return [cells[position].token for position in range(len(cells))]


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
        cached: sequence ids for the prefix cache.
        ubatch: 0 = as the batch.
        cost: seconds of a step with so many decoding sequences and so many tokens of prefill.
        answers: how many tokens the model says before it ends by itself; 1000 where nothing stands here.
    """

    cells: int = 64
    slots: int = 4
    batch: int = 16
    ubatch: int = 0
    cached: int = 0
    itl_target_s: float = 0.1
    cost: Callable[[int, int], float] = lambda decoding, prefill: 0.01 + 0.001 * decoding + 0.002 * prefill
    answers: dict[int, int] = field(default_factory=dict)
    scheduler: Scheduler = field(init=False)
    cache: PrefixCache = field(init=False)
    kv: Cells = field(default_factory=Cells)
    finished: dict[int, tuple[str, Sequence]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ubatch = self.ubatch or self.batch
        self.cache = PrefixCache(self.kv, range(self.slots, self.slots + self.cached), self.cells)
        self.scheduler = Scheduler(
            self.kv,
            self.cache,
            cells=self.cells,
            slots=self.slots,
            batch=self.batch,
            ubatch=self.ubatch,
            itl_target_s=self.itl_target_s,
        )

    def step(self) -> Step | None:
        """One turn of the worker's loop; None when there was nothing to do."""
        decoding = [s for s in self.scheduler.running if s.is_decoding and not s.is_resting]
        slices = self.scheduler.plan()
        if not slices:
            return None
        self._check(slices, decoding)
        step = Step(
            decoded=[s.sequence.uid for s in slices if s.sequence.is_decoding],
            prefilled={s.sequence.uid: s.count for s in slices if not s.sequence.is_decoding},
            seconds=0.0,
        )
        for piece in slices:
            self._compute(piece, alone=len(slices) == 1)
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

    def say(self, *args: int, **more: object) -> Sequence:
        """Run one request to its end, alone."""
        one = sequence(*args, **more)  # type: ignore[arg-type]  # handed on
        self.scheduler.add(one)
        self.run()
        return one

    def come_back(self, one: Sequence, count: int) -> None:
        """So many tokens, but never the last, come back from where a sequence is computed aside."""
        piece = Slice(one, min(count, one.pending - 1))
        if self.scheduler.make_way(piece):
            assert self.kv.used + piece.count <= self.cells
            self._compute(piece, alone=False)
        else:
            one.is_aside = False

    def finish(self, sequence: Sequence, reason: str) -> None:
        """End a sequence, as the worker does for whatever reason."""
        self.scheduler.remove(sequence)
        self.finished[sequence.uid] = reason, sequence

    def _check(self, slices: list[Slice], decoding: list[Sequence]) -> None:
        assert sum(s.count for s in slices) <= self.batch
        assert all(s.count >= 1 and not s.sequence.is_resting for s in slices)
        assert len({s.sequence.uid for s in slices}) == len(slices)
        assert len({s.sequence.slot for s in slices}) == len(slices) <= self.slots
        assert all(0 <= s.sequence.slot < self.slots for s in slices)
        for one in decoding:
            if one.slot >= 0:  # not preempted by this plan
                assert [s.count for s in slices if s.sequence is one] == [1]

    def _check_digits(self, one: Sequence) -> None:
        """What was computed as by a request alone in an empty cache is known, and is what an exact request has."""
        for position, cell in self.kv.of[one.slot].items():
            first = position // self.ubatch * self.ubatch
            if one.pristine[position]:
                assert (cell.index, cell.among) == (position, range(first, first + self.ubatch))
            if one.exact and one.is_alone and not one.preemptions:
                generated = range(position, position + 1)
                prompt = range(first, min(first + self.ubatch, one.prompt_tokens))
                assert (cell.index, cell.among) == (position, prompt if position < one.prompt_tokens else generated)

    def _compute(self, piece: Slice, *, alone: bool) -> None:
        one = piece.sequence
        assert len(self.kv.tokens(one.slot)) == one.computed, (
            "positions have to follow each other, and a slot's old cells to be gone"
        )
        completes = piece.completes
        start, end = one.computed, one.computed + piece.count
        cells, free = self.kv.of.setdefault(one.slot, {}), self.kv.free()
        for position in range(start, end):
            owner = None if position < one.shared else one.owner
            first = position - (position - start) % self.ubatch
            among = range(first, min(first + self.ubatch, end)) if alone else range(0)
            cells[position] = Cell(one.tokens[position], owner, next(free), among)
        self.scheduler.advance(piece)
        one.reached = max(one.reached, min(one.computed, one.prompt_tokens))
        assert self.kv.tokens(one.slot) == one.tokens[: one.computed]
        assert {cell.owner for cell in self.kv.of[one.slot].values()} <= {None, one.owner}, "others' words are private"
        self._check_digits(one)
        assert self.kv.used <= self.cells
        if not completes:
            return
        if one.generated >= self.answers.get(one.uid, 1000):
            self.finish(one, "stop")
            return
        one.tokens.append(token(one.uid, len(one.tokens)))
        if one.generated >= one.max_tokens or not self.scheduler.has_room(one):
            self.finish(one, "length")
