"""The batch of one step: numpy views over llama.cpp's arrays, because filling them one element at a time costs more."""

from __future__ import annotations

import ctypes

import llama_cpp as llama
import numpy as np


class Batch:
    """Up to `capacity` tokens of several sequences, and which of them want logits."""

    def __init__(self, capacity: int) -> None:
        self.raw = llama.llama_batch_init(capacity, 0, 1)
        self._tokens = np.ctypeslib.as_array(self.raw.token, (capacity,))
        self._positions = np.ctypeslib.as_array(self.raw.pos, (capacity,))
        self._counts = np.ctypeslib.as_array(self.raw.n_seq_id, (capacity,))
        self._logits = np.ctypeslib.as_array(self.raw.logits, (capacity,))
        # seq_id is an array of pointers, each to an array of one that llama_batch_init allocated on its own.
        pointers = ctypes.cast(self.raw.seq_id, ctypes.POINTER(ctypes.c_void_p))
        self._sequences = [ctypes.c_int32.from_address(pointers[i] or 0) for i in range(capacity)]
        self._counts[:] = 1
        self.capacity = capacity
        self.size = 0

    def clear(self) -> None:
        """Begin a new step."""
        self.size = 0

    def add(self, tokens: list[int], position: int, sequence: int, *, logits: bool) -> int:
        """Append tokens of a sequence, the first at `position`; with `logits` for the last of them.

        Returns:
            The index in the batch of the last token, by which its logits are found.
        """
        start, end = self.size, self.size + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        for cell in self._sequences[start:end]:
            cell.value = sequence
        self._logits[start:end] = 0
        self._logits[end - 1] = logits
        self.size = end
        self.raw.n_tokens = end
        return end - 1

    def close(self) -> None:
        """Give the arrays back."""
        llama.llama_batch_free(self.raw)
