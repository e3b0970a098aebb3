"""How well a model file foresees a text: its perplexity, by which a requantised file is compared with its source.

The text is cut into windows that are read apart from each other. Of each the first half only gives context, and the
second half is what counts, as llama.cpp's own tool does it. Figures of different windows or texts say nothing together.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path

import llama_cpp as llama
import numpy as np
import numpy.typing as npt

from edged.engine.batch import Batch
from edged.engine.context import DecodeError
from edged.engine.model import LogTap, ModelError, Vocabulary, open_file

#: Tokens of a window.
WINDOW = 256
#: Tokens that are decoded at once: the logits of all of them are held, and a vocabulary may have 250,000. Tokens.
_PIECE = 64


def perplexity(
    path: Path,
    text: str,
    *,
    threads: int,
    gpu_layers: int,
    most_windows: int,
    on_window: Callable[[int, int], None],
    log: LogTap,
) -> float:
    """The perplexity of a model on a text: e to the mean negative log probability of its tokens. Less is better.

    Args:
        path: the GGUF file.
        text: at least a window of tokens long.
        threads: CPU threads.
        gpu_layers: layers that go to the GPU.
        most_windows: so many windows are read, or as many as the text has.
        on_window: called with the windows that are done, and how many there are.
        log: of llama.cpp.

    Raises:
        ModelError: the file cannot be loaded, or the text is too short.
        DecodeError: llama.cpp could not compute it.
    """
    model = open_file(path, gpu_layers=gpu_layers, on_progress=lambda _fraction: None, log=log)
    context = _context(model, threads)
    batch = Batch(_PIECE)
    try:
        if not context:
            raise ModelError(f"no context to measure the perplexity of {path.name!r}: {log.why}")
        vocabulary = Vocabulary(llama.llama_model_get_vocab(model))
        windows = _windows(vocabulary, text)[:most_windows]
        if not windows:
            raise ModelError(f"the text is too short to measure a perplexity: it has less than {WINDOW} tokens")
        losses: list[float] = []
        for done, window in enumerate(windows, 1):
            losses += _losses(context, batch, window, vocabulary.size)
            on_window(done, len(windows))
        return math.exp(sum(losses) / len(losses))
    finally:
        batch.close()
        if context:
            llama.llama_free(context)
        llama.llama_model_free(model)


def _context(model: int, threads: int) -> int | None:
    params = llama.llama_context_default_params()
    params.n_ctx = WINDOW
    params.n_batch = params.n_ubatch = params.n_outputs_max = _PIECE
    params.n_seq_max = 1
    params.n_threads = params.n_threads_batch = threads
    params.no_perf = True
    context: int | None = llama.llama_init_from_model(model, params)
    return context


def _windows(vocabulary: Vocabulary, text: str) -> list[list[int]]:
    """Whole windows of tokens, each with the token that begins a text, where the model wants one."""
    tokens = vocabulary.tokenize(text)
    first = [vocabulary.bos] if vocabulary.adds_bos else []
    step = WINDOW - len(first)
    return [first + tokens[i : i + step] for i in range(0, len(tokens) - step + 1, step)]


def _losses(context: int, batch: Batch, window: list[int], vocabulary: int) -> list[float]:
    """The negative log probability of each token in the second half of a window."""
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    losses: list[float] = []
    for start in range(0, WINDOW, _PIECE):
        batch.clear()
        # a position's logits foretell the token after it
        counted = [i for i in range(start, start + _PIECE) if WINDOW // 2 <= i + 1 < WINDOW]
        for i in range(start, start + _PIECE):
            batch.add([window[i]], i, 0, logits=i in counted)
        if code := llama.llama_decode(context, batch.raw):
            raise DecodeError(code)
        if counted:
            rows = _logits(context, len(counted), vocabulary)
            losses += [_loss(row, window[i + 1]) for row, i in zip(rows, counted, strict=True)]
    return losses


def _logits(context: int, rows: int, vocabulary: int) -> npt.NDArray[np.float32]:
    pointer = ctypes.cast(llama.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, (rows, vocabulary))


def _loss(logits: npt.NDArray[np.float32], token: int) -> float:
    highest = logits.max()
    return float(highest - logits[token] + np.log(np.exp(logits - highest, dtype=np.float64).sum()))
