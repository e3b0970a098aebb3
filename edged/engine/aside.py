"""A long prompt that is computed aside: in a context of its own and a thread of its own, while others generate.

In the steps of those who generate, a few tokens of a prompt at a time make all wait, and cost several times what they
cost in whole physical batches. So the rest of a long prompt goes to a second context with a part of the threads. When
that is over, the first token of the answer is sampled there, and what was computed is taken block by block. It is not
taken before, because every step of the others would pass over its cells.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from edged.engine.batch import Batch
from edged.engine.context import Cells, Context
from edged.engine.model import Model
from edged.engine.sequence import Sequence
from edged.heap import trim

#: So many tokens are computed at once. llama.cpp's attention takes its quick way from 64 on. With 128 a prompt of 1,500
#: was done in 0.95 of the time, with 256 in 0.93; but whoever waits for a turn waits for the end of a block.
BLOCK = 128


@dataclass(frozen=True, slots=True)
class Block:
    """So many further tokens, and what is in their cells."""

    count: int
    cells: Cells


class Aside:
    """Computes the tokens of one sequence, from where it has got to, until it is over.

    Not the last one where a single token is wanted: who ends with that is to have all of its cells where they are kept.

    Args:
        model: what computes.
        sequence: whose tokens; only what comes from here may be added to what is computed of it.
        threads: CPU threads.
        block_s: what a block should take, seconds, for as long as none has been measured; 0 = nobody knows.

    Raises:
        RuntimeError, OSError: there is no thread or no file descriptor for it.

    Attributes:
        sequence: whose tokens.
        event: a file descriptor at which there is something to read when a block was computed, and when it is over.
        computed: the position behind the last token that was computed.
        is_over: nothing is computed any more: there is nothing left, it was stopped, or it went wrong.
        trouble: why it went wrong; empty where it did not.
        block_s: what a block takes, seconds; 0 = nobody knows.
        since: when it was last heard of, monotonic seconds.
    """

    def __init__(self, model: Model, sequence: Sequence, *, threads: int, block_s: float) -> None:
        self.sequence = sequence
        self.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.computed = sequence.computed
        self.is_over = False
        self.trouble = ""
        self.block_s = block_s
        self.since = time.monotonic()
        self._model = model
        self._threads = threads
        self._has_last = sequence.left > 1
        self._is_last_wanted = False
        self._tokens = sequence.tokens[: None if self._has_last else -1]
        self._start = self._taken = sequence.computed
        self._given = 0
        self._context: Context | None = None
        self._beginning: queue.SimpleQueue[Cells | None] = queue.SimpleQueue()
        self._is_ending = False
        self._abort = (ctypes.c_uint8 * 8)()  # a C string of no or one character
        self._thread = threading.Thread(target=self._run, name="aside", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(self.event)
            raise

    @property
    def blocks(self) -> int:
        """How many were computed."""
        return -(-(self.computed - self._start) // BLOCK)

    @property
    def left(self) -> int:
        """Tokens that were computed, are wanted, and have not been taken."""
        unwanted = self._is_complete and not self._is_last_wanted
        return self.computed - self._taken - unwanted

    def logits(self) -> Context | None:
        """Whose last logits tell what follows the last token; None where they do not, and from the second time on.

        Whoever asks samples from them: the last token is taken with the others from then on. Without what follows it
        nothing would be left to compute, and there would be no logits.
        """
        if self._is_last_wanted or not self._is_complete:
            return None
        self._is_last_wanted = True
        return self._context

    @property
    def _is_complete(self) -> bool:
        """Whether it is over, and the last token was computed with the others."""
        return self._has_last and self.is_over and self.computed == len(self._tokens)

    def listen(self) -> bool:
        """Hear what has happened since the last time; whether it is over. Then `event` says so until it is closed."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.event)
        if self.is_over:
            os.eventfd_write(self.event, 1)
        return self.is_over

    def wanted(self, most: int) -> range:
        """The next positions, so many at most, of what was computed before, and is to be given."""
        return range(self._given, min(self._given + most, self._start))

    def give(self, positions: range, cells: Cells) -> None:
        """Hand over what is in the cells of these positions."""
        self._given, self.since = positions.stop, time.monotonic()
        self._beginning.put(cells)

    def take(self) -> Block | None:
        """The next block of what was computed, when it is over; None where all has been taken.

        Raises:
            MemoryError: there is no memory for it.
        """
        count, start = min(BLOCK, self.left), self._taken
        if self._context is None or not count:
            return None
        block = Block(count, self._context.take(0, start, start + count))
        self._taken += count
        return block

    def finish(self) -> None:
        """Begin no further block."""
        self._is_ending = True
        self._beginning.put(None)

    def stop(self) -> None:
        """Compute nothing more."""
        self._abort[0] = 1
        self.finish()

    def close(self) -> None:
        """Wait until it is over, and give everything back."""
        self._thread.join()
        if self._context is not None:
            self._context.close()
            trim()
        os.close(self.event)

    def _run(self) -> None:
        with self._model.quietly():
            try:
                self._compute()
            except Exception as error:  # noqa: BLE001 - whatever it is, the prompt can be computed with the others
                if not self._abort[0]:
                    self.trouble = str(error) or "there is no memory for it"
            finally:
                self.is_over = True
                os.eventfd_write(self.event, 1)

    def _compute(self) -> None:
        context = self._context = self._model.open_aside(
            cells=len(self._tokens), batch=BLOCK, threads=self._threads, abort_flag=ctypes.addressof(self._abort)
        )
        batch = Batch(BLOCK)
        try:
            self._begin(context)
            while self.computed < len(self._tokens) and not self._is_ending:
                self._step(context, batch)
        finally:
            batch.close()

    def _begin(self, context: Context) -> None:
        """Take over what was computed before."""
        while context.reached(0) < self._start and (cells := self._beginning.get()) is not None:
            if not context.put(0, cells):
                raise MemoryError("llama.cpp found no room for what was computed before")
        self.since = time.monotonic()

    def _step(self, context: Context, batch: Batch) -> None:
        """Compute a block. It ends at a multiple of its size: one that begins within a tile of 64 touches one more."""
        tokens = self._tokens[self.computed : (self.computed // BLOCK + 1) * BLOCK]
        batch.clear()
        is_last = self._has_last and self.computed + len(tokens) == len(self._tokens)
        batch.add(tokens, self.computed, 0, logits=is_last)
        context.decode(batch.raw)
        self.computed += len(tokens)
        before, self.since = self.since, time.monotonic()
        self.block_s = self.since - before
        os.eventfd_write(self.event, 1)
