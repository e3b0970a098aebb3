"""A loaded GGUF model, its vocabulary and its KV cache, on llama.cpp's low-level API."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import llama_cpp as llama

#: Most tokens in one `llama_decode`; a prompt longer than this is prefilled in several steps.
BATCH_TOKENS = 512
#: Tokens that llama.cpp computes at once. The compute buffer grows with it, the speed on a CPU does not.
_UBATCH_TOKENS = 64

#: llama.cpp's ggml_log_level: 1 debug, 2 info, 3 warning, 4 error, 5 continues the line before.
_LOG_LEVELS = {1: "debug", 2: "debug", 3: "warning", 4: "error"}
_LOG_CONTINUES = 5


#: What `llama_decode` returns when the KV cache has no room for the batch; then nothing has changed.
NO_ROOM = 1


class ModelError(RuntimeError):
    """llama.cpp could not load the file or make a context for it; the message says what to do."""


class DecodeError(RuntimeError):
    """`llama_decode` failed.

    Attributes:
        code: `NO_ROOM`, 2 aborted, -1 invalid batch, below -1 fatal.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"llama_decode returned {code}")
        self.code = code


class LogTap:
    """Hands llama.cpp's log on, line by line; has to live as long as llama.cpp may write.

    Keeps the last warnings and errors, because the reason why a load failed stands only there.
    """

    def __init__(self, sink: Callable[[str, str], None]) -> None:
        self._sink = sink
        self._level = "debug"
        self.complaints: list[str] = []
        self._callback = llama.llama_log_callback(self._line)
        llama.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _line(self, level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        if level != _LOG_CONTINUES:
            self._level = _LOG_LEVELS.get(level, "debug")
        line = text.decode("utf-8", errors="replace").strip()
        if not line or self._level == "debug":
            return
        self.complaints = [*self.complaints[-4:], line]
        self._sink(self._level, line)


class Vocabulary:
    """Tokens and their texts. Token ids are ints, pieces are bytes, because a token may be part of a character."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer
        self.size: int = llama.llama_vocab_n_tokens(pointer)
        self.bos: int = llama.llama_vocab_bos(pointer)
        self.eos: int = llama.llama_vocab_eos(pointer)
        self.adds_bos: bool = llama.llama_vocab_get_add_bos(pointer)
        self._pieces: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(256)

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return bool(llama.llama_vocab_is_eog(self._pointer, token))

    def text(self, token: int) -> str:
        """The token as the vocabulary names it; empty where it has none (-1)."""
        if token < 0:
            return ""
        raw: bytes = llama.llama_vocab_get_text(self._pointer, token)
        return raw.decode("utf-8", errors="replace")

    def attributes(self, token: int) -> int:
        """llama.cpp's `llama_token_attr` bits."""
        return int(llama.llama_vocab_get_attr(self._pointer, token))

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """The tokens that steer the model (`<|im_start|>`, …), by their text. User text never becomes one."""
        wanted = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_USER_DEFINED
        found = (t for t in range(self.size) if self.attributes(t) & wanted)
        return {text: token for token in found if (text := self.text(token))}

    def tokenize(self, text: str) -> list[int]:
        """Tokens of plain text: no token is added, and none of it becomes a control token."""
        raw = text.encode("utf-8")
        room = len(raw) + 2  # a token for each byte, and what a tokenizer may put before the first
        while True:
            buffer = (llama.llama_token * room)()
            count: int = llama.llama_tokenize(self._pointer, raw, len(raw), buffer, room, False, False)
            if count >= 0:
                return buffer[:count]
            room = -count  # a tokenizer that rewrites the text first may need more

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text; control tokens add none."""
        known = self._pieces.get(token)
        if known is None:
            size = llama.llama_token_to_piece(self._pointer, token, self._buffer, len(self._buffer), 0, False)
            if size < 0:  # longer than the buffer: the negative of its length
                self._buffer = ctypes.create_string_buffer(-size)
                size = llama.llama_token_to_piece(self._pointer, token, self._buffer, -size, 0, False)
            known = self._pieces[token] = self._buffer.raw[:size]
        return known


class Model:
    """A model and one context for it, whose unified KV cache all sequences share.

    Args:
        path: the GGUF file.
        context: cells of the KV cache, tokens; cut to what the model was trained for.
        parallel: sequences that can be in a batch.
        threads: CPU threads.
        gpu_layers: layers to offload; no effect in a build without a GPU backend.
        on_progress: called while loading with the fraction that is done.

    Raises:
        ModelError: the file cannot be loaded, or there is no memory for the context.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        parallel: int,
        threads: int,
        gpu_layers: int,
        on_progress: Callable[[float], None],
        log: LogTap,
    ) -> None:
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = gpu_layers

        def progress(fraction: float, _user_data: ctypes.c_void_p) -> bool:
            on_progress(fraction)
            return True

        progress_callback = llama.llama_progress_callback(progress)
        params.progress_callback = progress_callback
        pointer = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not pointer:
            why = "; ".join(log.complaints) or "llama.cpp gave no reason"
            raise ModelError(f"llama.cpp cannot load {path.name!r}: {why}")
        self._pointer: int = pointer
        vocab = llama.llama_model_get_vocab(pointer)
        self.vocabulary = Vocabulary(vocab)
        self.parallel = parallel
        self.threads = threads
        self._context = self._new_context(min(context, llama.llama_model_n_ctx_train(pointer) or context), path, log)
        self.context: int = llama.llama_n_ctx(self._context)
        self._memory = llama.llama_get_memory(self._context)

    def _new_context(self, size: int, path: Path, log: LogTap) -> int:
        params = llama.llama_context_default_params()
        params.n_ctx = size
        params.n_batch = BATCH_TOKENS
        params.n_ubatch = _UBATCH_TOKENS
        params.n_seq_max = self.parallel
        params.n_outputs_max = self.parallel
        params.n_threads = params.n_threads_batch = self.threads
        params.kv_unified = True
        params.no_perf = True
        context = llama.llama_init_from_model(self._pointer, params)
        if not context:
            why = "; ".join(log.complaints) or "llama.cpp gave no reason"
            raise ModelError(
                f"no context of {size} tokens for {path.name!r}: {why}; a smaller `context` needs less memory"
            )
        return int(context)

    @property
    def context_pointer(self) -> int:
        """llama.cpp's `llama_context`, for the samplers."""
        return self._context

    @property
    def parameters(self) -> int:
        """Weights of the model."""
        return int(llama.llama_model_n_params(self._pointer))

    @property
    def quantisation(self) -> str:
        """The file's type as llama.cpp calls it, e.g. `Q4_1`."""
        name: bytes | None = llama.llama_ftype_name(llama.llama_model_ftype(self._pointer))
        return name.decode() if name else "unknown"

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that the file carries."""
        raw: bytes | None = llama.llama_model_chat_template(self._pointer, None)
        return raw.decode("utf-8", errors="replace") if raw else None

    def decode(self, batch: llama.llama_batch) -> None:
        """Compute a batch.

        Raises:
            DecodeError: it did not work; with `NO_ROOM` nothing has changed.
        """
        code: int = llama.llama_decode(self._context, batch)
        if code:
            raise DecodeError(code)

    def forget(self, sequence: int) -> None:
        """Free a sequence's cells in the KV cache."""
        llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def close(self) -> None:
        """Free the context and the model."""
        llama.llama_free(self._context)
        llama.llama_model_free(self._pointer)
