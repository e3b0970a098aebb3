"""Has long prompts computed aside, one after the other, and brings what was computed to where it belongs."""

from __future__ import annotations

import time
from collections.abc import Callable

from edged.engine import memory
from edged.engine.aside import BLOCK, Aside, Block
from edged.engine.context import Context
from edged.engine.model import Model
from edged.engine.scheduler import Scheduler, Slice
from edged.engine.sequence import Sequence
from edged.engine.threads import Threads

#: So many tokens of what was computed before are handed over in one turn: the streams wait for it.
_GIVEN = 256
#: What computing a block needs besides the cells. Bytes; measured with the starter model.
_COMPUTE = 16 * 1024 * 1024
#: Blocks of a turn, where others wait for theirs.
_TURN = 2
#: In one turn of the worker so much is brought home: as takes this part of a step of those who decode, or seconds where
#: nobody does.
_HOME, _HOME_S = 0.35, 0.05
#: A block that takes so many times as long as it should, and at least so many seconds, is late.
_LATE, _LATE_S = 20.0, 10.0


class Prefiller:
    """Looks after one prompt at a time.

    Where several want it, they take turns: half of these are for the one that came first, so that nobody waits for
    ever, half for whoever has least left, so that a short prompt is not stuck behind a long one.

    Args:
        model: what computes.
        scheduler: of the model's sequences.
        threads: there are; half of them for what is computed aside.
        on_progress: called with a sequence and the position behind the last of its tokens that was computed aside.
        on_logits: called with a sequence whose tokens are all computed, and the context whose last logits are its own.
        on_block: called for each block that has come home, after its cells and before it is counted.
        on_trouble: called with a sentence where a prompt could not be computed aside.
    """

    def __init__(
        self,
        model: Model,
        scheduler: Scheduler,
        threads: Threads,
        *,
        on_progress: Callable[[Sequence, int], None],
        on_logits: Callable[[Sequence, Context], None],
        on_block: Callable[[Slice], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self._model = model
        self._scheduler = scheduler
        self._on_progress = on_progress
        self._on_logits = on_logits
        self._on_block = on_block
        self._on_trouble = on_trouble
        self._threads = threads
        self._cell_bytes = 0.0
        self._aside: Aside | None = None
        self._back: Sequence | None = None
        self._favours_first = False

    def weigh(self, sequence: int, tokens: int) -> None:
        """Find out from a sequence of so many tokens how much memory a cell needs."""
        if self._model.allows_aside:
            self._cell_bytes = len(self._model.context.take(sequence, 0, tokens)) / tokens

    def event(self, now: float) -> int | None:
        """A file descriptor that has something to read when there is something to do; None where it is not waited for.

        It is waited for where nothing else is to be done, and where it is late: then nothing else is done, so that the
        daemon can tell whether it hangs.
        """
        aside = self._aside
        if aside is None:
            return None
        late = now - aside.since > max(_LATE_S, _LATE * aside.block_s)
        return aside.event if late or self._scheduler.idle else None

    @property
    def is_busy(self) -> bool:
        """Whether something is computed aside, with a part of the threads."""
        return self._aside is not None and not self._aside.is_over

    @property
    def expected_s(self) -> float:
        """What a block should take, seconds; 0 = nobody knows."""
        return self._aside.block_s if self._aside is not None else 0.0

    def tend(self) -> None:
        """See to what is computed aside, and what comes next."""
        if self._back is not None:
            self._back.is_aside, self._back = False, None
        aside = self._aside
        if aside is None:
            half = self._threads.count // 2
            self._scheduler.has_aside = bool(self._cell_bytes and half)
            if self._scheduler.has_aside:
                self._begin(half)
            return
        sequence, is_over = aside.sequence, aside.listen()
        if sequence.is_aside:  # else it has ended, or made way for others
            self._on_progress(sequence, aside.computed)
        if is_over:
            self._conclude(aside)
            self._bring_home(aside)
        elif sequence.is_held or not sequence.is_aside:
            aside.stop()
        elif not self._scheduler.decoding or (aside.blocks >= _TURN and self._scheduler.worth_aside()):
            # Others want their turn; or nobody is to be spared, and whole steps of the whole machine are quicker.
            aside.finish()
        elif positions := aside.wanted(_GIVEN):
            self._hand_over(positions, aside)

    def close(self) -> None:
        """Let go of what is being computed, and wait for its end."""
        if self._aside is not None:
            self._aside.stop()
            self._end(self._aside)

    def _begin(self, half: int) -> None:
        sequence = self._next()
        if sequence is None:
            return
        if not memory.fits(round(len(sequence.tokens) * self._cell_bytes) + _COMPUTE):
            sequence.stays = True
            return
        block_s = self._scheduler.costs.prefill_s * BLOCK * self._threads.count / half
        try:
            self._aside = Aside(self._model, sequence, threads=half, block_s=block_s)
        except (RuntimeError, OSError) as error:
            self._give_up(sequence, str(error))
            return
        sequence.is_aside = True
        sequence.timing.begin(time.monotonic())
        self._model.context.use(self._threads.count - half)

    def _next(self) -> Sequence | None:
        """Whose turn it is; None where nobody wants one."""
        candidates = self._scheduler.worth_aside()
        if not candidates:
            return None
        self._favours_first = not self._favours_first
        return candidates[0] if self._favours_first else min(candidates, key=lambda one: one.pending)

    def _hand_over(self, positions: range, aside: Aside) -> None:
        """Give away what was computed before."""
        try:
            cells = self._model.context.take(aside.sequence.slot, positions.start, positions.stop)
        except MemoryError as error:
            aside.trouble = str(error) or "there is no memory for what was computed before"
            aside.stop()
        else:
            aside.give(positions, cells)

    def _conclude(self, aside: Aside) -> None:
        """Have the next token sampled: it need not wait until all is home."""
        sequence = aside.sequence
        if sequence.is_aside and not sequence.is_held and (context := aside.logits()) is not None:
            self._on_logits(sequence, context)

    def _bring_home(self, aside: Aside) -> None:
        """Take in what was computed, as much as those who decode can wait for in this turn."""
        until = time.monotonic() + (_HOME * self._scheduler.decode_s or _HOME_S)
        try:
            while aside.sequence.is_aside and (block := aside.take()) is not None:
                self._take_in(block, aside.sequence)
                if aside.left and time.monotonic() >= until:
                    return
        except MemoryError as error:
            aside.trouble = str(error) or "there is no memory for what was computed"
        self._end(aside)

    def _take_in(self, block: Block, sequence: Sequence) -> None:
        piece = Slice(sequence, block.count)
        if not self._scheduler.make_way(piece):
            sequence.is_aside = False
        elif self._model.context.put(sequence.slot, block.cells):
            self._on_block(piece)
        else:
            sequence.is_aside, sequence.stays = False, True
            self._on_trouble("llama.cpp found no room in the KV cache for a prompt that was computed aside")

    def _end(self, aside: Aside) -> None:
        """Clear away. Whoever has nothing to wait for but its next token, begins with the step after the next.

        That step takes longer, with a sequence more that is long; and those who decode have waited for this already.
        """
        aside.close()
        self._aside, sequence = None, aside.sequence
        if sequence.is_aside and sequence.pending == 1 and self._scheduler.decoding:
            self._back = sequence
        else:
            sequence.is_aside = False
        if aside.trouble:
            self._give_up(sequence, aside.trouble)

    def _give_up(self, sequence: Sequence, why: str) -> None:
        """Have it computed with the others."""
        sequence.stays = True
        self._on_trouble(f"a prompt could not be computed aside: {why}")
