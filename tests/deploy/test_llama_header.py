"""deploy/llama.h mends what goes wrong where llama.cpp is compiled for processors with AVX512-FP16 and AMX."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from tests.deploy.tools import ROOT, program

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="compilers for other processors know no AMX, and the header does nothing"
)

#: As llama.cpp does it: the configuration is on the stack, and nobody but the instruction reads it.
TILES = """
#include <immintrin.h>
void begin() {
    alignas(64) unsigned words[16] = {};
    words[0] = 1;
    words[15] = 19088743;
    _tile_loadconfig(words);
}
"""


def compiled(source: str, *flags: str, tmp_path: Path) -> str:
    """The assembly of a piece of C++ with the header before it, as with the flags that setup.sh gives."""
    path = tmp_path / "source.cpp"
    path.write_text(source)
    command = [program("g++", "g++"), "-std=gnu++17", "-O3", "-Wall", "-Werror", *flags]
    command += ["-include", str(ROOT / "deploy/llama.h"), "-S", "-o", "-", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_all_of_a_tile_configuration_is_there_when_it_is_loaded(tmp_path: Path) -> None:
    assembly = compiled(TILES, "-march=sapphirerapids", tmp_path=tmp_path)
    assert "ldtilecfg" in assembly
    assert "19088743" in assembly, "its last word was left out"


def test_half_precision_is_not_taken_by_pieces_larger_than_a_head(tmp_path: Path) -> None:
    compiled("#ifdef __AVX512FP16__\n#error it is\n#endif\n", "-march=sapphirerapids", tmp_path=tmp_path)


def test_for_other_processors_it_changes_nothing(tmp_path: Path) -> None:
    source = "#ifdef _tile_loadconfig\n#error it is\n#endif\n#ifdef _IMMINTRIN_H_INCLUDED\n#error it was\n#endif\n"
    compiled(source, "-march=haswell", tmp_path=tmp_path)
