"""A context of llama.cpp: the KV cache of some sequences, and what computes them."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from dataclasses import dataclass

import llama_cpp as llama

from edged.engine.cores import others_elsewhere
from edged.engine.protocol import Load

_FLASH_ATTENTION = {
    "auto": llama.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": llama.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_KV_TYPES = {"f16": llama.GGML_TYPE_F16, "q8_0": llama.GGML_TYPE_Q8_0}

#: What `llama_decode` returns when the KV cache has no room for the batch; then nothing has changed.
NO_ROOM = 1
#: What it returns when it was aborted; what was computed of the batch is to be taken back.
ABORTED = 2


#: What is in some cells of the KV cache, in llama.cpp's own form.
Cells = ctypes.Array[ctypes.c_uint8]


class DecodeError(RuntimeError):
    """`llama_decode` failed.

    Attributes:
        code: `NO_ROOM`, `ABORTED`, -1 invalid batch, below -1 fatal.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"llama_decode returned {code}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a context is.

    Attributes:
        cells: of the KV cache, tokens.
        sequences: how many ids of sequences it has.
        batch: most tokens in one `decode`.
        ubatch: tokens that are computed at once.
        carries: whether `take`, `put` and `move` are wanted; they need an id of their own.
    """

    cells: int
    sequences: int
    batch: int
    ubatch: int
    carries: bool


class Context:
    """A context, whose unified KV cache all of its sequences share.

    Args:
        model: llama.cpp's `llama_model`, which has to live longer.
        load: the types of the cache and of attention.
        shape: how large it is.
        threads: CPU threads.
        abort_flag: address of a C string; `decode` is aborted as soon as it has one character and not none.

    Attributes:
        pointer: llama.cpp's `llama_context`.
        cells: of the KV cache; llama.cpp may have rounded them up.
        batch: most tokens in one `decode`; no more than the cells.
        threads: CPU threads that compute.

    Raises:
        MemoryError: llama.cpp could not make it; its log tells why.
    """

    def __init__(self, model: int, load: Load, shape: Shape, *, threads: int, abort_flag: int | None) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx = shape.cells
        params.n_batch = shape.batch
        params.n_ubatch = shape.ubatch
        params.n_seq_max = params.n_outputs_max = shape.sequences + shape.carries
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = _KV_TYPES[load.kv_type]
        params.flash_attn_type = _FLASH_ATTENTION[load.flash_attention]
        params.kv_unified = True
        params.no_perf = True
        pointer = llama.llama_init_from_model(model, params)
        if not pointer:
            raise MemoryError(f"no context of {shape.cells} tokens")
        self.pointer = int(pointer)
        self.cells: int = llama.llama_n_ctx(self.pointer)
        self.batch: int = llama.llama_n_batch(self.pointer)
        self.threads = threads
        self._is_changed = False
        self._memory = llama.llama_get_memory(self.pointer)
        self._carrier = shape.sequences  # the id behind the last
        if abort_flag is not None:
            # Called for every node of the graph: strlen is as good as a callback of ours, and needs no GIL.
            self._abort = ctypes.cast(ctypes.CDLL(None).strlen, llama.ggml_abort_callback)
            llama.llama_set_abort_callback(self.pointer, self._abort, ctypes.c_void_p(abort_flag))

    def decode(self, batch: llama.llama_batch) -> None:
        """Compute a batch.

        Raises:
            DecodeError: it did not work; with `NO_ROOM` nothing has changed.
        """
        placing = others_elsewhere() if self._is_changed else nullcontext()
        self._is_changed = False
        with placing:
            code: int = llama.llama_decode(self.pointer, batch)
        if code:
            raise DecodeError(code)

    def use(self, threads: int) -> None:
        """Compute with so many CPU threads from now on."""
        if threads != self.threads:
            llama.llama_set_n_threads(self.pointer, threads, threads)
            self._is_changed = True
            self.threads = threads

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Let the target own the source's cells of positions `start` to `end` (exclusive) as well."""
        llama.llama_memory_seq_cp(self._memory, source, target, start, end)

    def drop(self, sequence: int, start: int = 0, end: int | None = None) -> bool:
        """Take away a sequence's cells of positions `start` to `end` (exclusive; None = all that follow).

        Returns:
            False where this model's cache can only be dropped whole, and nothing was done.
        """
        return bool(llama.llama_memory_seq_rm(self._memory, sequence, start, -1 if end is None else end))

    def reached(self, sequence: int) -> int:
        """The position behind the last that a sequence has cells for."""
        return int(llama.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def take(self, sequence: int, start: int, end: int) -> Cells:
        """What is in a sequence's cells of positions `start` to `end` (exclusive), for `put` of another context."""
        self.copy(sequence, self._carrier, start, end)
        size = llama.llama_state_seq_get_size(self.pointer, self._carrier)
        cells: Cells = (ctypes.c_uint8 * size)()
        llama.llama_state_seq_get_data(self.pointer, cells, size, self._carrier)
        self.drop(self._carrier)
        return cells

    def put(self, sequence: int, cells: Cells) -> bool:
        """Give a sequence what `take` of another context had in its cells, at the same positions.

        Returns:
            False where llama.cpp found no room for it, and nothing has changed.
        """
        if not self._load(cells):
            return False
        self._hand_on(sequence)
        return True

    def move(self, sequence: int, start: int, end: int) -> bool:
        """Put what is in a sequence's cells of positions `start` to `end` (exclusive) into the first that are free.

        Returns:
            False where there is no room for it, or no memory, and nothing has changed.
        """
        try:
            cells = self.take(sequence, start, end)
        except MemoryError:
            return False
        if not self._load(cells):
            return False
        self.drop(sequence, start, end)
        self._hand_on(sequence)
        return True

    def _load(self, cells: Cells) -> bool:
        """Give them to the carrier; False where llama.cpp found no room."""
        return bool(llama.llama_state_seq_set_data(self.pointer, cells, len(cells), self._carrier))

    def _hand_on(self, sequence: int) -> None:
        """Give a sequence what the carrier has, which has nothing then."""
        self.copy(self._carrier, sequence, 0, -1)
        self.drop(self._carrier)

    def close(self) -> None:
        """Free it."""
        llama.llama_free(self.pointer)
