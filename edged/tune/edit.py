"""Changes of a configuration file that leave everything else in it as it was: comments, order, blank lines.

The outcome is read again: unless it says what it said before, with the new values and nothing else changed, nothing is
written.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit

from edged.config import ConfigError
from edged.config.sample import toml

#: The values of a `[[models]]` entry that change, by key.
Changes = Mapping[str, str | int]


class EditError(ValueError):
    """The text cannot be edited safely."""


def snippet(changes: Changes) -> str:
    """The changes as they stand in a file."""
    return "\n".join(["[[models]]", *(f"{key} = {toml(value)}" for key, value in changes.items())])


def edited(text: str, index: int | None, changes: Changes) -> str:
    """A configuration file's text with changes in one model's section.

    Args:
        text: TOML.
        index: which of the `[[models]]` it is, from 0; None adds one.
        changes: keys that are set already get the new value, others are added.

    Raises:
        EditError: the text is written in a way that cannot be edited without changing more.
    """
    expected: dict[str, Any] = copy.deepcopy(tomllib.loads(text))
    document = tomlkit.parse(text)
    if index is None:
        expected.setdefault("models", []).append(dict(changes))
        if "models" not in document:
            document.append("models", tomlkit.aot())
        document["models"].append(tomlkit.item(dict(changes)))
    else:
        expected["models"][index].update(changes)
        section = document["models"][index]
        for key, value in changes.items():
            # A new key stands at the end of the section, which may be far from where the sample speaks of it.
            section[key] = value if key in section else tomlkit.item(value).comment("edged tune")
    new = tomlkit.dumps(document)
    try:
        same = tomllib.loads(new) == expected
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise EditError("its [[models]] are written in a way that cannot be changed safely")
    return new


def check_writable(path: Path) -> None:
    """Prove that a file can be replaced, before long work is done for it.

    Raises:
        ConfigError: it cannot.
    """
    target = path.resolve()
    if not os.access(target, os.W_OK) or not os.access(target.parent, os.W_OK):
        raise ConfigError(
            f"{path} cannot be written by this user: run it as one who may, or without --write, which shows what to "
            "change"
        )


def write(path: Path, before: Mapping[str, Any], index: int | None, changes: Changes) -> None:
    """Change a configuration file, in one go: whoever reads it sees the old or the new one.

    Args:
        path: of the file.
        before: what it said when the changes were found.
        index: as for `edited`.
        changes: as for `edited`.

    Raises:
        ConfigError: it has been changed meanwhile, cannot be edited or cannot be written. It is as it was.
    """
    by_hand = f"put this in yourself:\n{snippet(changes)}"
    target = path.resolve()  # a link stays one
    try:
        text = target.read_bytes().decode()
        if tomllib.loads(text) != before:
            raise EditError("it has been changed meanwhile")
        _replace(target, edited(text, index, changes))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; {by_hand}") from error
    except ValueError as error:
        raise ConfigError(f"{path} was left as it is: {error}; {by_hand}") from error


def _replace(target: Path, text: str) -> None:
    old = target.stat()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
            os.fchmod(file.fileno(), old.st_mode & 0o7777)
            with contextlib.suppress(PermissionError):  # only root may give a file away
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
