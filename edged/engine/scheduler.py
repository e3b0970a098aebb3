"""Who is in the next batch, and with how many tokens. Knows sequences, cells and costs, nothing of llama.cpp.

Every sequence that decodes gets its token in every step. What is left of the step goes to prefill: as much as a step
should last when nothing decodes, otherwise no more than keeps the step under the target gap between tokens, judged by
what decode and prefill have cost so far on this machine.

A sequence that is held is in no step. It keeps its place, but nobody waits for it: where another one needs the place,
it gives it up, and comes back when it is released.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from operator import attrgetter

from edged.engine.admission import Admission
from edged.engine.costs import Costs
from edged.engine.prefix import KVCache, Node, PrefixCache
from edged.engine.sequence import Sequence

#: While nothing is known of costs, so many tokens of prefill go along with sequences that decode.
_FIRST_PREFILL = 16
#: How long a step of prefill alone should last: whoever comes meanwhile waits for its end. Seconds.
_PREFILL_STEP_S = 0.2
#: A prompt of which more tokens than that are still to be computed is worth a context of its own.
_LONG = 128
_AGE = attrgetter("number")
#: Where one decode step alone is near the target or over it, prefill may still make it so many times as long.
_LEAST_STRETCH = 2.0


@dataclass(frozen=True, slots=True)
class Slice:
    """So many of a sequence's next tokens in this step."""

    sequence: Sequence
    count: int

    @property
    def completes(self) -> bool:
        """Whether the next token can be sampled after it."""
        return self.count == self.sequence.pending


class Scheduler:
    """Keeps the sequences and plans the steps.

    Args:
        kv: the cells.
        cache: what was computed for ended sequences.
        cells: size of the KV cache, tokens.
        slots: sequences that may run at the same time.
        batch: most tokens in one step; at least `slots`, for everyone who decodes is in it.
        ubatch: tokens that are computed at once.
        itl_target_s: longest step while sequences decode, seconds.

    Attributes:
        costs: what steps cost.
        has_aside: whether those that are worth it will be computed aside; until then no step takes any of them along.
    """

    def __init__(
        self, kv: KVCache, cache: PrefixCache, *, cells: int, slots: int, batch: int, ubatch: int, itl_target_s: float
    ) -> None:
        self._kv = kv
        self._cache = cache
        self._cells = cells
        self._slots = list(range(slots))
        self._batch = batch
        self._ubatch = ubatch
        self._itl_target_s = itl_target_s
        self._waiting: list[Sequence] = []  # oldest first, as these:
        self._running: list[Sequence] = []
        self._admission = Admission(cache, cells, running=self._running, slots=self._slots)
        self._came = 0
        self._reach = 0
        self._is_settled = True  # nobody who waits has room
        self.costs = Costs()
        self.has_aside = False

    def add(self, sequence: Sequence) -> None:
        """Take a new sequence in; it waits for its turn."""
        self._is_settled = False
        sequence.number = self._came
        self._came += 1
        self._waiting.append(sequence)

    def find(self, uid: int) -> Sequence | None:
        """The sequence of a request."""
        return next((s for s in (*self._running, *self._waiting) if s.uid == uid), None)

    @property
    def idle(self) -> bool:
        """Nothing to do since the last plan, until one comes, goes, is released, or is back from where it is aside."""
        return self._is_settled and all(s.is_resting for s in self._running)

    @property
    def running(self) -> list[Sequence]:
        """The sequences with a place in the KV cache, oldest first."""
        return list(self._running)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out for good; what it has computed is kept for those who begin alike, while there is room."""
        self._is_settled = False
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            self._keep(sequence)
            self._vacate(sequence)

    def plan(self) -> list[Slice]:
        """The next step: admits who fits, makes room where the cache is full. Empty when there is nothing to do."""
        self._admit()
        slices = self._slices()
        while (over := self._used() + sum(s.count for s in slices) - self._cells) > 0:
            if not self._cache.evict(over) and not self.preempt():
                break
            slices = self._slices()
        else:
            self._reach = self._cells + over
        self._is_settled = not slices
        return slices

    def advance(self, piece: Slice) -> None:
        """Note that a slice was computed."""
        sequence = piece.sequence
        completes = piece.completes
        as_alone = sequence.is_alone and sequence.computed % self._ubatch == 0
        whole = piece.count // self._ubatch * self._ubatch if as_alone else 0
        sequence.pristine += b"\1" * whole + bytes(piece.count - whole)
        sequence.computed += piece.count
        if piece.count > 1 or len(self._running) == 1:
            sequence.together = sequence.computed
        sequence.reach = max(sequence.reach, self._reach)
        if completes and not sequence.is_kept:
            self._keep(sequence)

    def undo(self, slices: list[Slice]) -> None:
        """Take back what an aborted step may have computed of these slices."""
        for piece in slices:
            sequence = piece.sequence
            if not self._kv.drop(sequence.slot, sequence.computed):  # all or nothing: from the start again
                self._kv.drop(sequence.slot)
                sequence.computed = sequence.together = 0
                sequence.pristine.clear()

    def make_room(self) -> bool:
        """Free some cells, although there should be enough; whether that was possible."""
        return bool(self._cache.evict(self._batch)) or self.preempt()

    def worth_aside(self) -> list[Sequence]:
        """The prompts that should be computed aside, in another context, while others decode here, oldest first.

        They are those that are long, where the steps cannot take a whole physical batch of them along: llama.cpp
        computes fewer tokens at a much higher price for each.
        """
        decoding = len(self.decoding)
        if not decoding or self._prefill_budget(decoding) >= self._ubatch:
            return []
        return [s for s in self._prefilling() if _is_long(s)]

    def make_way(self, piece: Slice) -> bool:
        """Make room for tokens that were computed aside; False where there is none, or their own sequence had to go."""
        while (over := self._used() + piece.count - self._cells) > 0:
            if not self._cache.evict(over) and not self.preempt():
                return False
        self._reach = self._cells + over
        return piece.sequence.is_aside

    def has_free(self, cells: int) -> bool:
        """Whether so many cells are free."""
        return self._used() + cells <= self._cells

    def moved(self, sequence: Sequence, count: int) -> None:
        """Note that so many of a sequence's scattered tokens, the first ones, lie in other cells now, together."""
        sequence.together = sequence.scattered.start + count
        sequence.reach = max(sequence.reach, self._used() + count)

    @property
    def decoding(self) -> list[Sequence]:
        """The sequences that wait for nothing but their next token, oldest first."""
        return [s for s in self._running if s.is_decoding and not s.is_resting]

    @property
    def decode_s(self) -> float:
        """What a step should take in which those decode who can, seconds; 0 where nobody can, or nothing is known."""
        return self.costs.decode_s(len(self.decoding))

    def preempt(self) -> bool:
        """Send a running sequence back to wait: the youngest of those that are held, or else the youngest of all.

        Its tokens are computed again later; nothing that was already given out changes.

        Returns:
            Whether it was done: not where it is the only one, and not held.
        """
        if held := [s for s in self._running if s.is_held]:
            self._displace(held[-1])
            return True
        if len(self._running) <= 1:
            return False
        self._displace(self._running[-1])
        return True

    def has_room(self, sequence: Sequence) -> bool:
        """Whether one more token of the sequence can ever be computed."""
        return len(sequence.tokens) <= self._cells

    def _used(self) -> int:
        """Cells that are not free."""
        return self._cache.cells + sum(s.computed - s.kept for s in self._running)

    def _admit(self) -> None:
        first: Sequence | None = None  # of those that find no place
        waiting = [s for s in self._waiting if not s.is_held]
        for sequence in waiting:
            if first is None and (gone := self._admission.leave_for(sequence)) is not None:
                for one in gone:
                    self._displace(one)
                    if not one.is_held:  # it passed this one, so its turn comes after it
                        insort(waiting, one, key=_AGE)
                self._begin(sequence)
            elif first is None:
                first = sequence
            elif self._admission.may_pass(sequence, first):
                self._begin(sequence)
                sequence.yields = self._admission.is_short(sequence)

    def _begin(self, sequence: Sequence) -> None:
        """Give it a slot, and what there is of its tokens."""
        self._waiting.remove(sequence)
        sequence.slot = self._slots.pop(0)
        node = self._attach(sequence)
        sequence.stand_on(node)
        sequence.computed = node.end
        sequence.pristine = bytearray(node.path_pristine)
        sequence.is_alone = not self._running and self._cache.is_pristine(node)
        for other in self._running:
            other.is_alone = False
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(node.end, sequence.prompt_tokens)
        insort(self._running, sequence, key=_AGE)

    def _attach(self, sequence: Sequence) -> Node:
        if sequence.exact and not self._running:
            return self._cache.attach_exactly(sequence.slot, sequence.tokens, sequence.owner, self._ubatch)
        return self._cache.attach(sequence.slot, sequence.tokens, sequence.owner)

    def _keep(self, sequence: Sequence) -> None:
        """Put what a sequence has computed into the prefix cache."""
        sequence.is_kept = True
        computed, pristine = sequence.tokens[: sequence.computed], bytes(sequence.pristine)
        node, shared = sequence.node, sequence.shared
        if node is None:
            return
        if shared and shared <= len(computed):
            beginning = computed[:shared], pristine[:shared]
            node = self._cache.insert(sequence.slot, *beginning, None, node, reach=sequence.reach)
        node = self._cache.insert(sequence.slot, computed, pristine, sequence.owner, node, reach=sequence.reach)
        sequence.stand_on(node)
        sequence.pristine[: node.end] = node.path_pristine  # where it took cells over

    def _slices(self) -> list[Slice]:
        slices = [Slice(s, 1) for s in self.decoding]
        prefilling = self._prefilling()
        if slices and any(s.is_aside for s in self._running):  # a turn will come for the other long ones, too
            prefilling = [s for s in prefilling if not _is_long(s)]
        elif prefilling and self.has_aside:
            elsewhere = self.worth_aside()
            prefilling = [s for s in prefilling if s not in elsewhere]
        budget = self._prefill_budget(len(slices)) if prefilling and not (slices and self.costs.is_blurred) else 0
        # Half of it for the one that came first, so that nobody waits for ever; the rest for whoever has least left,
        # so that short prompts are not stuck behind long ones.
        counts = {}
        for sequence in prefilling[:1]:
            counts[sequence.uid] = min(sequence.pending, budget if len(prefilling) == 1 else -(-budget // 2))
        left = budget - sum(counts.values())
        for sequence in sorted(prefilling, key=lambda s: s.pending):
            before = counts.get(sequence.uid, 0)
            more = min(sequence.pending - before, left)
            counts[sequence.uid] = before + more
            left -= more
        slices += [Slice(s, counts[s.uid]) for s in prefilling if counts[s.uid]]
        # Recurrent models are computed together only where their ids rise without a gap.
        return sorted(slices, key=lambda piece: piece.sequence.slot)

    def _prefilling(self) -> list[Sequence]:
        return [s for s in self._running if s.pending > 1 and not s.is_resting]

    def _prefill_budget(self, decoding: int) -> int:
        room = self._batch - decoding
        prefill_s = self.costs.prefill_s
        if not decoding:
            # Whole physical batches, so that a prompt alone is cut in the same places every time.
            affordable = int(_PREFILL_STEP_S / prefill_s) if prefill_s else 0
            return max(self._ubatch, min(room, affordable) // self._ubatch * self._ubatch)
        if not prefill_s:
            return min(room, _FIRST_PREFILL)
        decode_s = self.costs.decode_s(decoding)
        target = max(self._itl_target_s, _LEAST_STRETCH * decode_s)
        return min(room, max(1, int((target - decode_s) / prefill_s)))

    def _displace(self, sequence: Sequence) -> None:
        """Send a running sequence back to wait."""
        if sequence.is_held:  # it may find it there when it comes back: the place is needed, its cells perhaps not
            self._keep(sequence)
        self._vacate(sequence)
        sequence.preemptions += 1
        insort(self._waiting, sequence, key=_AGE)

    def _vacate(self, sequence: Sequence) -> None:
        """Take a running sequence's place away."""
        self._is_settled = False
        self._running.remove(sequence)
        self._kv.drop(sequence.slot)
        if sequence.node is not None:
            self._cache.release(sequence.node)
        insort(self._slots, sequence.slot)
        sequence.leave()


def _is_long(sequence: Sequence) -> bool:
    """Whether its prompt may be computed aside."""
    return sequence.pending > _LONG and not sequence.stays
