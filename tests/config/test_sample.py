"""The documentation made from the settings says what the settings do."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edged.config import Settings, Sources, load, markdown, sample, summary
from edged.config.sample import toml
from edged.config.settings import Model

_PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def _keys(values: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of all keys."""
    found = set()
    for name, value in values.items():
        nested = value[0] if name == "models" else value
        found |= _keys(nested, f"{prefix}{name}.") if isinstance(nested, dict) else {prefix + name}
    return found


def _load(text: str, tmp_path: Path) -> Settings:
    path = tmp_path / "sample.toml"
    path.write_text(text)
    return load(path)


def _uncommented() -> str:
    return re.sub(r"^#(?=[a-z_]+ = )", "", sample(), flags=re.MULTILINE)


def test_the_sample_loads_to_the_defaults_as_it_stands(tmp_path: Path) -> None:
    assert _load(sample(), tmp_path) == Settings()
    assert "=" not in "".join(line for line in sample().splitlines() if not line.startswith("#"))


def test_the_sample_with_every_key_uncommented_loads_to_the_defaults(tmp_path: Path) -> None:
    assert _load(_uncommented(), tmp_path) == Settings()
    assert _keys(tomllib.loads(_uncommented())) == _keys(Settings().model_dump())


def test_every_key_of_the_sample_can_be_uncommented_alone(tmp_path: Path) -> None:
    keys = list(re.finditer(r"^#(?=[a-z_]+ = )", sample(), flags=re.MULTILINE))
    assert len(keys) > 40
    for key in keys:
        assert _load(sample()[: key.start()] + sample()[key.end() :], tmp_path) == Settings()


def test_every_key_is_explained_with_its_unit_and_bounds() -> None:
    assert "(integer from 1 to 65535)\n#port = 1883\n" in sample()
    assert re.search(r"\(number from 0 to 5000, ms\)\n#flush_ms = 40\n", sample())
    for line in sample().splitlines():
        assert len(line) <= 100
    for model in [type(getattr(Settings(), n)) for n in Settings.model_fields if n != "models"] + [Model]:
        assert all(field.description for field in model.model_fields.values()), model


def test_the_checked_in_page_is_current() -> None:
    assert _PAGE.read_text(encoding="utf-8") == markdown(), "run: python -m edged.config docs/configuration.md"


def test_the_page_is_the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = markdown()
    monkeypatch.setattr("socket.gethostname", lambda: "another-host")
    assert markdown() == before
    assert "another-host" in sample()


def test_the_page_names_every_key() -> None:
    for name in _keys(Settings().model_dump()):
        assert f"| `{name.rpartition('.')[2]}` |" in markdown()


def test_the_page_is_written_by_the_command_it_names(tmp_path: Path) -> None:
    assert "python -m edged.config docs/configuration.md" in markdown()
    page = tmp_path / "configuration.md"
    subprocess.run([sys.executable, "-m", "edged.config", str(page)], check=True, timeout=60)
    assert page.read_text(encoding="utf-8") == markdown()
    wrong = subprocess.run(
        [sys.executable, "-m", "edged.config"], capture_output=True, text=True, check=False, timeout=60
    )
    assert wrong.returncode == 1
    assert wrong.stderr == "usage: python -m edged.config FILE.md\n"


@pytest.mark.parametrize("value", ['a"b\\c', "ü\n\t\x00\x1f\x7f", "", "'", 1.5, 600.0, 1e-7, True, 3, ("a", 'b"'), ()])
def test_values_are_written_as_toml_reads_them(value: Any) -> None:
    read = tomllib.loads(f"x = {toml(value)}")["x"]
    assert (tuple(read) if isinstance(value, tuple) else read) == value


def test_the_summary_loads_to_what_is_in_force_and_says_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        '[limits]\nmax_queue = 7\n[[models]]\n[[models]]\nalias = "b"\n[models.defaults]\nsystem = "a\\nb"\n'
    )
    monkeypatch.setenv("EDGED_MQTT__TLS", "1")
    sources = Sources.gather(path, explicit={"node": {"name": "n"}})
    text = summary(sources.settings(), sources.origin)
    assert '\nname = "n"  # from the command line\n' in "\n" + text
    assert "\ntls = true  # from environment EDGED_MQTT__TLS\n" in text
    assert f"\nmax_queue = 7  # in {path}\n" in text
    assert f'\nalias = "b"  # in {path}\n' in text
    assert f'\nsystem = "a\\nb"  # in {path}\n' in text
    assert "\nport = 8883\n" in text
    monkeypatch.delenv("EDGED_MQTT__TLS")
    assert _load(text, tmp_path) == sources.settings()
