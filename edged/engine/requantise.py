"""Model files made into another type: such as llama.cpp rearranges for this CPU when it loads them, to be faster."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import llama_cpp as llama

#: What a file can be made into, by llama.cpp's names.
_TYPES = {
    "Q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "IQ4_NL": llama.LLAMA_FTYPE_MOSTLY_IQ4_NL,
}
_ERROR = 4  # of ggml_log_level


class RequantiseError(RuntimeError):
    """llama.cpp could not make the file; the message says why."""


def types() -> list[str]:
    """The types that are worth a try on this CPU: `IQ4_NL` is rearranged for some alone, and slow elsewhere."""
    flags: bytes = llama.llama_print_system_info()
    having = {flag.strip() for flag in flags.decode().replace(":", "|").split("|")}
    rearranged = "REPACK = 1" in having and having & {"AVX2 = 1", "DOTPROD = 1"}
    return ["Q4_0", "Q8_0", *(["IQ4_NL"] if rearranged else [])]


def requantise(source: Path, target: Path, kind: str, *, threads: int, on_tensor: Callable[[], None]) -> None:
    """Write the model of a file as another type.

    Args:
        source: a GGUF file of any type.
        target: the new file; it is written over.
        kind: one of `types()`.
        threads: CPU threads.
        on_tensor: called for each line that llama.cpp says, some for each tensor.

    Raises:
        RequantiseError: llama.cpp could not.
    """
    complaints: list[str] = []

    def listen(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        if level == _ERROR:
            complaints.append(text.decode("utf-8", errors="replace").strip())
        on_tensor()

    callback = llama.llama_log_callback(listen)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    llama.llama_backend_init()
    params = llama.llama_model_quantize_default_params()
    params.ftype = _TYPES[kind]
    params.nthread = threads
    params.allow_requantize = True
    try:
        code = llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    finally:
        llama.llama_log_set(llama.llama_log_callback(0), ctypes.c_void_p(0))  # ours ends with this function
    if code:
        why = "; ".join(complaints[-3:]) or f"it returned {code}"
        raise RequantiseError(f"llama.cpp cannot make {source.name!r} into {kind}: {why}")
