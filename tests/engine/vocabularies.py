"""Vocabularies for templates: one of characters, and real ones of llama.cpp, also of files that the tests write."""

from __future__ import annotations

import ctypes
import os
import re
import string
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import llama_cpp as llama

from edged.engine.model import LogTap, Vocabulary
from tests.engine import gguf
from tests.engine.gguf import Number, Numbers, u32

CONTROL, USER_DEFINED, LSTRIP, RSTRIP = 1 << 3, 1 << 4, 1 << 7, 1 << 8
_FIRST_CHARACTER = 100_000
_SPACE = r"[ \t\n\v\f\r]*"


class Characters:
    """A token for each character, and the special ones it is made with.

    Args:
        special: llama.cpp's attributes of each special token, by its text.
        bos: the text of the beginning-of-text token, one of the special ones; none where it is empty.
    """

    def __init__(self, special: Mapping[str, int], *, bos: str = "", eos: str = "", adds_bos: bool = False) -> None:
        self._texts = list(special)
        self._attributes = list(special.values())
        self.control_tokens = {text: token for token, text in enumerate(self._texts)}
        self.bos = self.control_tokens.get(bos, -1)
        self.eos = self.control_tokens.get(eos, -1)
        self.adds_bos = adds_bos

    def text(self, token: int) -> str:
        return self._texts[token] if token >= 0 else ""

    def attributes(self, token: int) -> int:
        return self._attributes[token]

    def tokenize(self, text: str) -> list[int]:
        """Plain text, in which llama.cpp finds user-defined tokens all the same."""
        return self._split(text, USER_DEFINED)

    def whole(self, text: str) -> list[int]:
        """A rendered template as one string, each special token in it found: what the model was trained on."""
        return self._split(text, CONTROL | USER_DEFINED)

    def said(self, tokens: list[int]) -> str:
        return "".join(self._texts[t] if t < _FIRST_CHARACTER else chr(t - _FIRST_CHARACTER) for t in tokens)

    def controls(self, tokens: list[int]) -> list[str]:
        return [self._texts[t] for t in tokens if t < _FIRST_CHARACTER]

    def _split(self, text: str, which: int) -> list[int]:
        special = [t for t, token in self.control_tokens.items() if self._attributes[token] & which]
        # The longest first; each takes the white space that belongs to it.
        pattern = "|".join(map(self._with_space, sorted(special, key=len, reverse=True))) or "(?!)"
        tokens: list[int] = []
        for part in filter(None, re.split(pattern, text)):
            tokens += [self.control_tokens[part]] if part in special else [_FIRST_CHARACTER + ord(c) for c in part]
        return tokens

    def _with_space(self, special: str) -> str:
        attributes = self._attributes[self.control_tokens[special]]
        before, after = (_SPACE if attributes & which else "" for which in (LSTRIP, RSTRIP))
        return f"{before}({re.escape(special)}){after}"


@contextmanager
def loaded(path: Path) -> Iterator[Vocabulary]:
    """The vocabulary of a GGUF file, without its weights."""
    llama.llama_backend_init()
    log = LogTap(lambda _level, _line: None)
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(os.fsencode(path), params)
    assert model, log.complaints
    try:
        yield Vocabulary(llama.llama_model_get_vocab(model))
    finally:
        llama.llama_model_free(model)
        # The log's callback dies with `log`: back to the default before that.
        llama.llama_log_set(llama.llama_log_callback(), ctypes.c_void_p(0))  # a null pointer


def whole(vocabulary: Vocabulary, text: str) -> list[int]:
    """A rendered template as llama.cpp tokenises it in one piece, each special token in it found."""
    raw = text.encode()
    buffer = (llama.llama_token * (len(raw) + 8))()
    count = llama.llama_tokenize(vocabulary._pointer, raw, len(raw), buffer, len(buffer), False, True)
    assert count >= 0
    return list(buffer[:count])


def write_sentencepiece(path: Path, special: Mapping[str, int], *, name: str = "test") -> None:
    """A GGUF file without weights: a vocabulary of letters and bytes, a space before each text, BOS added.

    Args:
        special: further tokens with their types (3 control, 4 user-defined), behind `<unk>`, `<s>` and `</s>`.
        name: llama.cpp knows by it which tokens take the white space that follows (`phi-3`).
    """
    pieces = ["▁", *string.printable[:94], *"▁abcdefghijklm"]
    tokens = ["<unk>", "<s>", "</s>", *special, *(f"<0x{i:02X}>" for i in range(256))]
    kinds = [2, 3, 3, *special.values(), *[6] * 256]
    seen = dict.fromkeys(p for p in pieces if p not in tokens)
    tokens += seen
    kinds += [1] * len(seen)
    path.write_bytes(
        gguf.header(
            [
                ("general.architecture", "llama"),
                ("general.name", name),
                ("llama.context_length", u32(128)),
                ("llama.embedding_length", u32(8)),
                ("llama.block_count", u32(1)),
                ("llama.feed_forward_length", u32(8)),
                ("llama.attention.head_count", u32(1)),
                ("llama.attention.layer_norm_rms_epsilon", Number("f32", 1e-5)),
                ("tokenizer.ggml.model", "llama"),
                ("tokenizer.ggml.tokens", tokens),
                ("tokenizer.ggml.scores", Numbers("f32", (0.0,) * len(tokens))),
                ("tokenizer.ggml.token_type", Numbers("i32", tuple(kinds))),
                ("tokenizer.ggml.bos_token_id", u32(1)),
                ("tokenizer.ggml.eos_token_id", u32(2)),
                ("tokenizer.ggml.add_bos_token", Number("bool", 1)),
            ]
        )
    )
