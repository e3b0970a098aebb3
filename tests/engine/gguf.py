"""Writes GGUF files (ggml/docs/gguf.md) that no model's maker would ship: headers alone, and tiny models."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Value types by their names: type id, struct format.
NUMBERS = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
    "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip
STRING, ARRAY = 8, 9
#: ggml's type of 32-bit floats.
_F32 = 0
#: What each tensor's data begins at a multiple of where `general.alignment` says nothing else. Bytes.
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a named type, e.g. `Number("u32", 7)`."""

    kind: str
    value: float

    def pack(self) -> bytes:
        _, form = NUMBERS[self.kind]
        return struct.pack(form, self.value if self.kind in ("f32", "f64") else int(self.value))


@dataclass(frozen=True, slots=True)
class Numbers:
    """An array of numbers of one type."""

    kind: str
    values: tuple[float, ...]


Value = str | Number | Numbers | list[str]


def u32(value: int) -> Number:
    """What most of llama.cpp's own keys are."""
    return Number("u32", value)


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(what: Value) -> bytes:
    """A value with its type before it."""
    match what:
        case str():
            return struct.pack("<I", STRING) + string(what)
        case Number():
            return struct.pack("<I", NUMBERS[what.kind][0]) + what.pack()
        case Numbers():
            packed = b"".join(Number(what.kind, one).pack() for one in what.values)
            return struct.pack("<IIQ", ARRAY, NUMBERS[what.kind][0], len(what.values)) + packed
        case list():
            return struct.pack("<IIQ", ARRAY, STRING, len(what)) + b"".join(map(string, what))


def header(
    entries: Iterable[tuple[str, Value]], tensors: Iterable[bytes] = (), *, version: int = 3, magic: bytes = b"GGUF"
) -> bytes:
    """The header of a file, without tensors where none are described."""
    body, described = [string(key) + value(what) for key, what in entries], list(tensors)
    return struct.pack("<4sIQQ", magic, version, len(described), len(body)) + b"".join([*body, *described])


def file(entries: Iterable[tuple[str, Value]], tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """A whole file with its tensors.

    Args:
        entries: of the header.
        tensors: by their names. numpy names the slowest dimension first, ggml the fastest: shape (rows, columns) here
            is {columns, rows} there.
    """
    described, data = [], b""
    for name, array in tensors.items():
        shape = array.shape[::-1]
        described.append(string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _F32, len(data)))
        data += padded(array.astype("<f4").tobytes())
    return padded(header(entries, described)) + data


def padded(raw: bytes) -> bytes:
    """With zeros up to where the next tensor may begin."""
    return raw + bytes(-len(raw) % _ALIGNMENT)
