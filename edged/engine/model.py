"""A loaded GGUF model, its vocabulary and its KV cache, on llama.cpp's low-level API."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path

import llama_cpp as llama

from edged.engine.context import Context, Shape
from edged.engine.cores import usable_cores
from edged.engine.mapping import let_go
from edged.engine.protocol import Load

#: Most tokens in one `llama_decode`; a prompt longer than this is prefilled in several steps.
BATCH_TOKENS = 512
#: llama.cpp's ggml_log_level: 1 debug, 2 info, 3 warning, 4 error, 5 continues the line before.
_LOG_LEVELS = {1: "debug", 2: "debug", 3: "warning", 4: "error"}
_LOG_CONTINUES = 5
#: A text of no more characters is tokenised on the stack that there is, which is of 8 MiB as a rule.
_SHORT = 4096
#: How much of it a longer one is given, bytes. llama.cpp takes 320 for each character of a word, on x86-64.
_STACK, _STACK_PER_CHARACTER = 8 * 1024 * 1024, 1024
#: Sequence ids that keep cached prefixes, at least; each makes some buffers larger.
_CACHED = 16
#: llama.cpp has no more (LLAMA_MAX_SEQ).
_MOST_SEQUENCES = 256


class ModelError(RuntimeError):
    """llama.cpp could not load the file or make a context for it; the message says what to do.

    Attributes:
        error: `unavailable` or `out_of_memory`.
    """

    def __init__(self, message: str, error: str = "unavailable") -> None:
        super().__init__(message)
        self.error = error


class LogTap:
    """Hands llama.cpp's log on, line by line; has to live as long as llama.cpp may write.

    Keeps the last warnings and errors, because the reason why a load failed stands only there.

    Args:
        sink: takes the level and the text of a line.
        muted: whether what is written now is of no interest: llama.cpp calls it an error to be aborted.
    """

    def __init__(self, sink: Callable[[str, str], None], muted: Callable[[], bool] = lambda: False) -> None:
        self._sink = sink
        self._muted = muted
        self._muted_threads: set[int] = set()
        self._level = "debug"
        self.complaints: list[str] = []
        self._callback = llama.llama_log_callback(self._line)
        llama.llama_log_set(self._callback, ctypes.c_void_p(0))

    @property
    def why(self) -> str:
        """What llama.cpp has complained of last, for a sentence about what it did not do."""
        return "; ".join(self.complaints) or "llama.cpp gave no reason"

    @contextmanager
    def muted_here(self) -> Iterator[None]:
        """Pass over what is written in this thread: the sink is called in none but the others."""
        me = threading.get_ident()
        self._muted_threads.add(me)
        try:
            yield
        finally:
            self._muted_threads.discard(me)

    def _line(self, level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        if threading.get_ident() in self._muted_threads:
            return
        if level != _LOG_CONTINUES:
            self._level = _LOG_LEVELS.get(level, "debug")
        line = text.decode("utf-8", errors="replace").strip()
        if not line or self._level == "debug" or self._muted():
            return
        self.complaints = [*self.complaints[-4:], line]
        self._sink(self._level, line)


def offloads(load: Load) -> bool:
    """Whether layers of the model go to a GPU, and so not into this machine's memory."""
    return bool(load.gpu_layers and llama.llama_supports_gpu_offload())


def open_file(
    path: Path, *, gpu_layers: int, on_progress: Callable[[float], None], log: LogTap, repack: bool = True
) -> int:
    """Load a GGUF file, without a context; returns llama.cpp's `llama_model`, which the caller frees.

    Args:
        path: the file.
        gpu_layers: layers to offload; no effect in a build without a GPU backend.
        repack: as in `Load`.
        on_progress: called with the fraction that is done.
        log: of llama.cpp.

    Raises:
        ModelError: it cannot be loaded.
    """
    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.use_extra_bufts = repack

    def progress(fraction: float, _user_data: ctypes.c_void_p) -> bool:
        on_progress(fraction)
        return True

    callback = llama.llama_progress_callback(progress)
    params.progress_callback = callback
    pointer: int | None = llama.llama_model_load_from_file(os.fsencode(path), params)
    if not pointer:
        raise ModelError(f"llama.cpp cannot load {path.name!r}: {log.why}")
    let_go(path)  # of what it has made layouts of its own from; the rest comes back with the first step
    return pointer


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

    @cached_property
    def longest(self) -> int:
        """No token is more text than that, bytes."""
        sizes = (len(llama.llama_vocab_get_text(self._pointer, token)) for token in range(self.size))
        return max(1, max(sizes, default=1))

    def tokenize(self, text: str) -> list[int]:
        """Tokens of plain text: no token is added, and none of it becomes a control token.

        Raises:
            RuntimeError: the text is long, and there is no thread to be had for it.
        """
        if len(text) <= _SHORT:
            return self._tokenize(text)
        # llama.cpp splits most models' texts by std::regex, which recurses once for each character of a word.
        before = threading.stack_size(_STACK + len(text) * _STACK_PER_CHARACTER)
        try:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(self._tokenize, text).result()
        finally:
            threading.stack_size(before)

    def _tokenize(self, text: str) -> list[int]:
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
    """A model and the context that its requests share.

    Args:
        load: what to load, and how. Its context is cut to what the model was trained for.
        on_progress: called while loading with the fraction that is done.
        log: of llama.cpp.
        abort_flag: address of a C string; `context.decode` is aborted as soon as it has one character and not none,
            where the model's cache allows that.

    Attributes:
        context: what computes its requests; its batch is no longer than the context that was asked for.
        sequences: ids in `context`: the first `parallel` for those that run, the rest for cached prefixes.
        threads: CPU threads.

    Raises:
        ModelError: the file cannot be loaded, or there is no memory for the context.
    """

    def __init__(
        self,
        load: Load,
        *,
        on_progress: Callable[[float], None],
        log: LogTap,
        abort_flag: int | None = None,
    ) -> None:
        pointer = self._pointer = open_file(
            Path(load.path), gpu_layers=load.gpu_layers, on_progress=on_progress, log=log, repack=load.repack
        )
        self._load = load
        self._log = log
        vocab = llama.llama_model_get_vocab(pointer)
        self.vocabulary = Vocabulary(vocab)
        self.parallel = load.parallel
        self.threads = load.threads or usable_cores()
        self.ubatch = min(load.ubatch, load.context)
        cached = max(_CACHED, load.parallel) if load.prefix_cache and self._shares else 0
        self.sequences = max(load.parallel, min(_MOST_SEQUENCES - 1, load.parallel + cached))
        trained = llama.llama_model_n_ctx_train(pointer) or load.context
        shape = Shape(min(load.context, trained), self.sequences, BATCH_TOKENS, load.ubatch, self._carries)
        # Only where what a step has computed can be taken back: other caches have let go of what was before it.
        self.context = self._open(shape, threads=self.threads, abort_flag=abort_flag if self._shares else None)

    @property
    def allows_aside(self) -> bool:
        """Whether a prompt can be computed beside the others, in a context and with threads of its own.

        Its cells have to be such that can be moved, and the processor's threads what computes.
        """
        return self._carries and self.threads > 1

    @property
    def allows_moves(self) -> bool:
        """Whether cells can be moved, and attention is quicker where they lie together: flash attention is."""
        return self._carries and self._load.flash_attention != "off"

    def open_aside(self, *, cells: int, batch: int, threads: int, abort_flag: int) -> Context:
        """A further context, for one sequence, which may be made and used in another thread.

        Raises:
            ModelError: there is no memory for it.
        """
        return self._open(Shape(cells, 1, batch, batch, carries=True), threads=threads, abort_flag=abort_flag)

    def quietly(self) -> AbstractContextManager[None]:
        """Pass over what llama.cpp logs in this thread."""
        return self._log.muted_here()

    def _open(self, shape: Shape, *, threads: int, abort_flag: int | None) -> Context:
        try:
            return Context(self._pointer, self._load, shape, threads=threads, abort_flag=abort_flag)
        except MemoryError as error:
            raise ModelError(
                f"{error} for {Path(self._load.path).name!r}: {self._log.why}; a smaller `context` needs less memory",
                "out_of_memory",
            ) from None

    @property
    def _shares(self) -> bool:
        """Whether the cache is one of attention over all tokens, whose cells can be shared and cut.

        Recurrent states cannot, and a sliding window has forgotten what a shorter beginning would need.
        """
        pointer = self._pointer
        stateful = llama.llama_model_is_recurrent(pointer) or llama.llama_model_is_hybrid(pointer)
        return not stateful and not llama.llama_model_n_swa(pointer)

    @property
    def _carries(self) -> bool:
        """Whether there are cells that can be taken and put, in memory that is the processor's."""
        return self._shares and self.sequences < _MOST_SEQUENCES and not offloads(self._load)

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

    def close(self) -> None:
        """Free the context and the model."""
        self.context.close()
        llama.llama_model_free(self._pointer)
