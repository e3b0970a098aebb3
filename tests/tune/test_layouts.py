"""Requantised files: which are made, where they are, and what is left of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edged.engine import files
from edged.tune import layouts
from edged.tune.search import TrialFailed
from tests.tune.scripted import Machine, model_file

ALL = ("Q4_0", "Q8_0", "IQ4_NL")


def _source(name: str, kind: str | None, size: int) -> files.ModelFile:
    return files.ModelFile(path=Path(name), size=size, quantisation=kind)


@pytest.mark.parametrize(
    ("kind", "bits", "wanted"),
    [
        ("F16", 16, ["Q4_0", "Q8_0", "IQ4_NL"]),
        ("Q8_0", 8.5, ["Q4_0", "IQ4_NL"]),
        ("Q4_1", 5, ["Q4_0", "Q8_0", "IQ4_NL"]),
        ("Q4_0", 4.5, []),
        ("IQ4_NL", 4.5, []),
        ("Q2_K", 2.6, ["Q4_0", "IQ4_NL"]),
        ("IQ1_S", 1.6, []),
        (None, 16, ["Q4_0", "Q8_0", "IQ4_NL"]),
    ],
)
def test_tried_are_other_types_that_are_not_more_than_twice_as_large(
    kind: str | None, bits: float, wanted: list[str]
) -> None:
    source = _source("m.gguf", kind, size=int(1e9 * bits / 8))
    assert layouts.worth_trying(source, ALL, 10**9) == wanted


def test_one_part_of_several_is_not_requantised() -> None:
    assert layouts.worth_trying(_source("m-00001-of-00003.gguf", "F16", 10**9), ALL, 10**9) == []


@pytest.fixture
def source(tmp_path: Path) -> files.ModelFile:
    return files.describe(model_file(tmp_path / "Tiny-1B.Q4_1.gguf", "Q4_1"))


Make = Callable[[Machine], layouts.Workshop]


@pytest.fixture
def workshop(tmp_path: Path, source: files.ModelFile) -> Make:
    return lambda machine: layouts.Workshop(machine, source, tmp_path / "state" / "models", parameters=4096, threads=1)


def test_a_made_file_is_whole_and_readable_by_the_service(
    workshop: Make, tmp_path: Path, source: files.ModelFile
) -> None:
    old = os.umask(0o077)
    try:
        made = workshop(Machine()).make("Q4_0")
    finally:
        os.umask(old)
    digest = files.digest(source.path)[len("sha256:") :][:12]
    assert made.path == tmp_path / "state" / "models" / f"Tiny-1B.Q4_0.{digest}.gguf"
    assert made.quantisation == "Q4_0"
    assert made.path.stat().st_mode & 0o777 == 0o644
    assert made.path.parent.stat().st_mode & 0o777 == 0o755
    assert list(made.path.parent.iterdir()) == [made.path]


def test_a_file_that_is_there_is_used_again_and_never_removed(workshop: Make) -> None:
    machine = Machine()
    path = workshop(machine).make("Q4_0").path
    second = workshop(machine)
    assert second.make("Q4_0").path == path
    assert len(machine.orders) == 1
    second.clear(keep=None)
    assert path.exists()


def test_what_was_made_for_nothing_is_removed(workshop: Make) -> None:
    shop = workshop(Machine())
    one, other = shop.make("Q4_0").path, shop.make("Q8_0").path
    shop.clear(keep=other)
    assert list(one.parent.iterdir()) == [other]


@pytest.mark.parametrize("error", [TrialFailed("llama.cpp cannot"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(workshop: Make, tmp_path: Path, error: BaseException) -> None:
    class Breaks(Machine):
        def run(self, order: dict[str, Any]) -> dict[str, Any]:
            super().run(order)
            raise error

    with pytest.raises(type(error)):
        workshop(Breaks()).make("Q4_0")
    assert list((tmp_path / "state" / "models").iterdir()) == []


def test_what_a_killed_run_left_is_swept_away(workshop: Make) -> None:
    shop = workshop(Machine())
    path = shop.path("Q4_0")
    path.parent.mkdir(parents=True)
    dead, alive = (path.with_name(f".{path.name}.{pid}") for pid in (2**22 + 1, 1))
    for left in (dead, alive):
        left.touch()
    shop.make("Q4_0")
    assert sorted(path.parent.iterdir()) == sorted([alive, path])


def test_without_room_on_the_disk_no_file_is_begun(workshop: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage())
    machine = Machine()
    with pytest.raises(TrialFailed, match=r"^the Q4_0 file needs about 0 MB in '.*', where 0 MB are free$"):
        workshop(machine).make("Q4_0")
    assert machine.orders == []


class _Usage:
    free = 100


def test_a_directory_that_cannot_be_made_is_a_sentence(workshop: Make, tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(TrialFailed, match=r"cannot be kept in '.*': Not a directory; .* STATE_DIRECTORY"):
        workshop(Machine()).make("Q4_0")


def test_a_damaged_file_is_not_used(workshop: Make) -> None:
    shop = workshop(Machine())
    shop.make("Q4_0").path.write_bytes(b"oops")
    with pytest.raises(TrialFailed, match=r"is no GGUF file.*; remove it, and it is made anew"):
        shop.make("Q4_0")
