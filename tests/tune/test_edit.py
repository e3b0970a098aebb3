"""Writing settings: only the keys that change are touched, or the file stays as it is."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from edged.config import ConfigError, load, sample
from edged.tune import edit

TWO = """\
# my kitchen
[node]
name = "kitchen"   # where it is

[[models]]
path = "/srv/a.gguf"
threads = 3  # one is for the camera

[models.defaults]
temperature = 0.1

[[models]]  # the second
alias = 'b'
path = '/srv/b.gguf'

[log]
level = "debug"
"""


def test_a_key_that_is_set_gets_the_new_value_and_keeps_its_comment() -> None:
    assert edit.edited(TWO, 0, {"threads": 2}) == TWO.replace("threads = 3  #", "threads = 2  #")


def test_a_new_key_stands_behind_the_last_one_of_its_own_section() -> None:
    assert edit.edited(TWO, 0, {"ubatch": 128}) == TWO.replace("camera\n", "camera\nubatch = 128 # edged tune\n")
    assert edit.edited(TWO, 1, {"ubatch": 128, "threads": 1}) == TWO.replace(
        "'/srv/b.gguf'\n", "'/srv/b.gguf'\nubatch = 128 # edged tune\nthreads = 1 # edged tune\n"
    )


def test_a_path_with_odd_characters_survives() -> None:
    path = 'C:\\a "b" # c/ü.gguf'
    new = edit.edited(TWO, 1, {"path": path})
    assert tomllib.loads(new)["models"][1] == {"alias": "b", "path": path}
    assert edit.edited(new, 1, {"path": "/srv/b.gguf"}) == TWO.replace("'/srv/b.gguf'", '"/srv/b.gguf"')


def test_in_the_sample_a_new_key_stands_in_its_section_and_says_where_it_is_from() -> None:
    new = edit.edited(sample(), 0, {"threads": 2, "path": "/srv/x.gguf"})
    added = 'threads = 2 # edged tune\npath = "/srv/x.gguf" # edged tune\n'
    assert added in new
    assert [line for line in new.replace(added, "", 1).split("\n") if line] == [
        line for line in sample().split("\n") if line
    ]


def test_a_file_without_models_gets_a_section() -> None:
    assert edit.edited("", None, {"threads": 2}) == "[[models]]\nthreads = 2\n"
    text = '[node]\nname = "a"\n# the end\n\n'
    assert edit.edited(text, None, {"threads": 2}) == '[node]\nname = "a"\n# the end\n\n[[models]]\nthreads = 2\n'


@pytest.mark.parametrize(
    "text",
    [
        TWO.replace("\n", "\r\n"),
        'models = [{path = "a.gguf", threads = 3}]\n',
        '[node]\nname = """\n[[models]]\n"""\n[[models]]\npath = "a"\n',
        '[[models]]\n"threads" = 3\n',
        '[[models]]\npath = """\na.gguf"""\nthreads = 1\n',
    ],
    ids=["CRLF", "inline", "header in a text", "quoted key", "long text"],
)
def test_other_ways_to_write_it_are_understood(text: str) -> None:
    expected = tomllib.loads(text)
    expected["models"][0]["threads"] = 2
    assert tomllib.loads(edit.edited(text, 0, {"threads": 2})) == expected


def test_what_would_change_more_than_it_should_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tomlkit, "dumps", lambda _document: "[node]\n")
    with pytest.raises(edit.EditError, match="cannot be changed safely"):
        edit.edited(TWO, 0, {"threads": 2})


def _file(tmp_path: Path, text: str = TWO) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "edged.toml"
    path.write_text(text)
    return path, tomllib.loads(text)


def test_written_settings_load_and_the_files_mode_stays(tmp_path: Path) -> None:
    path, before = _file(tmp_path)
    path.chmod(0o640)
    edit.write(path, before, 0, {"threads": 2})
    assert load(path).models[0].threads == 2
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    path, before = _file(tmp_path)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    edit.write(link, before, 0, {"threads": 2})
    assert link.is_symlink()
    assert load(path).models[0].threads == 2


def test_a_file_that_was_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path, before = _file(tmp_path)
    path.write_text(TWO.replace("kitchen", "cellar"))
    with pytest.raises(ConfigError, match=r"changed meanwhile; put this in yourself:\n\[\[models\]\]\nthreads = 2$"):
        edit.write(path, before, 0, {"threads": 2})
    assert path.read_text() == TWO.replace("kitchen", "cellar")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_gone_ends_in_a_sentence(tmp_path: Path) -> None:
    path, before = _file(tmp_path)
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        edit.write(path, before, 0, {"threads": 2})
    with pytest.raises(ConfigError, match="cannot be written by this user"):
        edit.check_writable(path)


def test_a_failed_write_leaves_the_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before = _file(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="No space left on device; put this in yourself"):
        edit.write(path, before, 0, {"threads": 2})
    assert path.read_text() == TWO
    assert list(tmp_path.iterdir()) == [path]
