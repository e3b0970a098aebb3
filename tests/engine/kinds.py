"""Tiny models of each kind of memory that llama.cpp knows, with random weights: they say noise, but always the same.

What one says next depends on all that it has read, so that a state that was lost or mixed up shows in the text.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.engine import gguf
from tests.engine.gguf import Number, Numbers, Value, u32

Tensors = dict[str, NDArray[np.float32]]

#: Tokens that a layer of the sliding-window model sees.
WINDOW = 16
_WIDTH, _HEADS, _HIDDEN, _TRAINED = 64, 4, 64, 4096
#: mamba's: the inner width has to be twice the other.
_INNER, _STATE, _RANK, _KERNEL = 2 * _WIDTH, 16, 4, 4
_LETTERS = ["▁", *string.ascii_lowercase]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of memory.

    Attributes:
        architecture: llama.cpp's name of one that has it.
        layers: of which its model consists, one letter each: `a`ttention, `s`tate space.
        shares: whether the engine can share and cut what was computed.
    """

    architecture: str
    layers: str
    shares: bool = False


KINDS = {
    "plain": Kind("llama", "aa", shares=True),
    "window": Kind("gemma2", "aa"),  # every other layer has a window, the first one too
    "recurrent": Kind("mamba", "ss"),
    "hybrid": Kind("jamba", "sa"),
}


def letters(length: int, seed: int) -> str:
    """A prompt of so many letters: as many tokens, and BOS and a space before them."""
    return "".join(random.Random(seed).choices(string.ascii_lowercase, k=length))


def write(path: Path, name: str, *, seed: int = 1) -> None:
    """Write the model of that kind.

    With this seed, every token that the tests compare is likelier than the next by several times what the shape of the
    batch changes.
    """
    kind = KINDS[name]
    weights = _Weights(seed)
    # Control tokens and bytes are nothing: never the most likely, so that no answer ends early.
    spoken = weights.matrix(len(_LETTERS), _WIDTH, scale=0.05)
    vocabulary = _vocabulary()
    silent = np.zeros((_tokens(vocabulary) - len(_LETTERS), _WIDTH), np.float32)
    tensors: Tensors = {"token_embd.weight": np.concatenate([silent, spoken]), "output_norm.weight": weights.ones()}
    for number, layer in enumerate(kind.layers):
        parts = weights.attention() if layer == "a" else weights.state_space(normed=kind.architecture == "jamba")
        if kind.architecture != "mamba":
            parts |= weights.feed_forward()
        if kind.architecture == "gemma2":
            parts |= {"post_attention_norm.weight": weights.ones(), "post_ffw_norm.weight": weights.ones()}
        tensors |= {f"blk.{number}.{part}": array for part, array in parts.items()}
    path.write_bytes(gguf.file([*_parameters(kind), *vocabulary], tensors))


class _Weights:
    """Random weights, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def matrix(self, rows: int, columns: int, *, scale: float = 1.0) -> NDArray[np.float32]:
        """One that leaves what it is multiplied with about as large as it was, times `scale`."""
        values = self._random.standard_normal((rows, columns)) * scale / np.sqrt(columns)
        return np.asarray(values, np.float32)

    def ones(self, length: int = _WIDTH) -> NDArray[np.float32]:
        return np.ones(length, np.float32)

    def attention(self) -> Tensors:
        # Large queries and keys: it looks at few tokens and not at the mean of all, in which each would be lost.
        return {
            "attn_norm.weight": self.ones(),
            "attn_q.weight": self.matrix(_WIDTH, _WIDTH, scale=1.4),
            "attn_k.weight": self.matrix(_WIDTH, _WIDTH, scale=1.4),
            "attn_v.weight": self.matrix(_WIDTH, _WIDTH),
            "attn_output.weight": self.matrix(_WIDTH, _WIDTH, scale=2.0),
        }

    def feed_forward(self) -> Tensors:
        return {
            "ffn_norm.weight": self.ones(),
            "ffn_gate.weight": self.matrix(_HIDDEN, _WIDTH),
            "ffn_up.weight": self.matrix(_HIDDEN, _WIDTH),
            "ffn_down.weight": self.matrix(_WIDTH, _HIDDEN),
        }

    def state_space(self, *, normed: bool) -> Tensors:
        """A layer of mamba; `normed` as jamba has it, with norms inside."""
        norms = {"dt": _RANK, "b": _STATE, "c": _STATE} if normed else {}
        # How fast each number of the state is forgotten: in some ten to some thousand tokens.
        decay = -np.geomspace(0.01, 1.0, _STATE, dtype=np.float32)
        return {
            "attn_norm.weight": self.ones(),
            "ssm_in.weight": self.matrix(2 * _INNER, _WIDTH, scale=2.0),
            "ssm_conv1d.weight": self.matrix(_INNER, _KERNEL, scale=2.0),
            "ssm_conv1d.bias": np.zeros(_INNER, np.float32),
            "ssm_x.weight": self.matrix(_RANK + 2 * _STATE, _INNER, scale=2.0),
            "ssm_dt.weight": self.matrix(_INNER, _RANK),
            "ssm_dt.bias": np.full(_INNER, -3.0, np.float32),
            "ssm_a": np.tile(decay, (_INNER, 1)),
            "ssm_d": np.full(_INNER, 0.1, np.float32),
            "ssm_out.weight": self.matrix(_WIDTH, _INNER, scale=2.0),
            **{f"ssm_{name}_norm.weight": self.ones(length) for name, length in norms.items()},
        }


def _parameters(kind: Kind) -> list[tuple[str, Value]]:
    heads = Numbers("u32", tuple(_HEADS * (layer == "a") for layer in kind.layers))
    entries: dict[str, Value] = {
        "context_length": u32(_TRAINED),
        "embedding_length": u32(_WIDTH),
        "block_count": u32(len(kind.layers)),
        "feed_forward_length": u32(_HIDDEN * (kind.architecture != "mamba")),
        "attention.layer_norm_rms_epsilon": Number("f32", 1e-5),
        "attention.head_count": u32(_HEADS * ("a" in kind.layers)),
    }
    if "a" in kind.layers:
        entries["attention.head_count_kv"] = heads
    if "s" in kind.layers:
        entries |= {
            "ssm.conv_kernel": u32(_KERNEL),
            "ssm.inner_size": u32(_INNER),
            "ssm.state_size": u32(_STATE),
            "ssm.time_step_rank": u32(_RANK),
        }
    if kind.architecture == "gemma2":
        entries["attention.sliding_window"] = u32(WINDOW)
    return [
        ("general.architecture", kind.architecture),
        *((f"{kind.architecture}.{key}", what) for key, what in entries.items()),
    ]


def _vocabulary() -> list[tuple[str, Value]]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *_LETTERS]
    kinds = (2, 3, 3, *[6] * 256, *[1] * len(_LETTERS))
    return [
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.tokens", tokens),
        ("tokenizer.ggml.scores", Numbers("f32", (0.0,) * len(tokens))),
        ("tokenizer.ggml.token_type", Numbers("i32", kinds)),
        ("tokenizer.ggml.bos_token_id", u32(1)),
        ("tokenizer.ggml.eos_token_id", u32(2)),
    ]


def _tokens(vocabulary: list[tuple[str, Value]]) -> int:
    tokens = dict(vocabulary)["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    return len(tokens)
