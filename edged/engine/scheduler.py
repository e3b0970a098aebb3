"""Who is in the next batch, and with how many tokens. Knows sequences and costs, nothing of llama.cpp.

Every sequence that decodes gets its token in every step. What is left of the step goes to prefill: all of a full batch
when nothing decodes, otherwise no more than keeps the step under the target gap between tokens, judged by what decode
and prefill have cost so far on this machine.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edged.engine.sequence import Sequence, State

#: Prefill goes on even where one decode step alone is over the target: tokens.
_LEAST_PREFILL = 16
#: Cells of the KV cache that admission leaves free for each running sequence to grow into.
_RESERVE = 32
#: Weight of the newest step in the running averages of costs.
_NEWEST = 0.2


@dataclass(slots=True)
class Costs:
    """What steps cost on this machine, as running averages.

    Attributes:
        decode_s: a step without prefill, seconds.
        prefill_s: one token of prefill, seconds.
    """

    decode_s: float = 0.0
    prefill_s: float = 0.0

    def learn(self, *, decoding: int, prefill: int, seconds: float) -> None:
        """Note what a step with so many decoding sequences and so many prefill tokens took."""
        if not prefill:
            self.decode_s = _average(self.decode_s, seconds)
        elif not decoding:
            self.prefill_s = _average(self.prefill_s, seconds / prefill)
        elif seconds > self.decode_s:
            self.prefill_s = _average(self.prefill_s, (seconds - self.decode_s) / prefill)


def _average(old: float, new: float) -> float:
    return new if not old else old + _NEWEST * (new - old)


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
        cells: size of the KV cache, tokens.
        slots: sequences that may run at the same time.
        batch: most tokens in one step; at least `slots`, for everyone who decodes is in it.
        itl_target_s: longest step while sequences decode, seconds.
    """

    def __init__(self, *, cells: int, slots: int, batch: int, itl_target_s: float) -> None:
        self._cells = cells
        self._slots = list(range(slots))
        self._batch = batch
        self._itl_target_s = itl_target_s
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # oldest first
        self._preempted: list[int] = []
        self.costs = Costs()

    def add(self, sequence: Sequence) -> None:
        """Take a new sequence in; it waits for its turn."""
        self._waiting.append(sequence)

    def find(self, uid: int) -> Sequence | None:
        """The sequence of a request."""
        return next((s for s in (*self._running, *self._waiting) if s.uid == uid), None)

    @property
    def idle(self) -> bool:
        """Nothing to do at all."""
        return not self._running and not self._waiting

    @property
    def running(self) -> list[Sequence]:
        """The sequences with a place in the KV cache, oldest first."""
        return list(self._running)

    def remove(self, sequence: Sequence) -> int:
        """Take a sequence out for good.

        Returns:
            The slot whose cells are to be freed; -1 where it had none.
        """
        sequence.state = State.FINISHED
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            return -1
        return self._release(sequence)

    def plan(self) -> list[Slice]:
        """The next step: admits who fits, preempts where the cache is full. Empty when there is nothing to do.

        The cells of the slots in `take_preempted()` have to be freed before the step is computed.
        """
        self._admit()
        while True:
            slices = self._slices()
            over = sum(s.computed for s in self._running) + sum(s.count for s in slices) - self._cells
            if over <= 0 or len(self._running) <= 1:
                return slices
            self.preempt_youngest()

    def preempt_youngest(self) -> bool:
        """Send the youngest running sequence back to wait, unless it is the only one; whether it was done.

        Its tokens are computed again later; nothing that was already given out changes.
        """
        if len(self._running) <= 1:
            return False
        sequence = self._running[-1]
        self._preempted.append(self._release(sequence))
        sequence.computed = 0
        sequence.preemptions += 1
        sequence.state = State.WAITING
        self._waiting.appendleft(sequence)
        return True

    def take_preempted(self) -> list[int]:
        """The slots that `plan` took away, each once."""
        slots, self._preempted = self._preempted, []
        return slots

    def has_room(self, sequence: Sequence) -> bool:
        """Whether one more token of the sequence can ever be computed."""
        return len(sequence.tokens) <= self._cells

    def _admit(self) -> None:
        while self._waiting and self._slots:
            sequence = self._waiting[0]
            wanted = sum(max(s.computed, len(s.tokens)) + _RESERVE for s in self._running)
            if self._running and wanted + len(sequence.tokens) + _RESERVE > self._cells:
                return
            self._waiting.popleft()
            sequence.slot = self._slots.pop()
            sequence.state = State.RUNNING
            self._running.append(sequence)

    def _slices(self) -> list[Slice]:
        slices = [Slice(s, 1) for s in self._running if s.is_decoding]
        prefilling = sorted((s for s in self._running if s.pending > 1), key=lambda s: s.pending)
        budget = self._prefill_budget(len(slices))
        for i, sequence in enumerate(prefilling):
            # An equal share for each; the shortest come first and leave what they do not need to the rest.
            count = min(sequence.pending, max(1, budget // (len(prefilling) - i)))
            if budget <= 0:
                break
            slices.append(Slice(sequence, count))
            budget -= count
        return slices

    def _prefill_budget(self, decoding: int) -> int:
        room = self._batch - decoding
        if not decoding:
            return room
        if not self.costs.prefill_s:
            return min(room, _LEAST_PREFILL)
        affordable = int((self._itl_target_s - self.costs.decode_s) / self.costs.prefill_s)
        return min(room, max(_LEAST_PREFILL, affordable))

    def _release(self, sequence: Sequence) -> int:
        self._running.remove(sequence)
        slot, sequence.slot = sequence.slot, -1
        self._slots.append(slot)
        return slot
