"""An environment without settings: what the machine that runs the tests has configured must not matter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edged.config import sources

_PLACES = ("CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "XDG_STATE_HOME")


def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Take away all EDGED_ variables and systemd's; the file in /etc becomes the returned path, which is not there."""
    for name in list(os.environ):
        if name.upper().startswith("EDGED_") or name in _PLACES:
            monkeypatch.delenv(name)
    etc = tmp_path / "etc" / "edged.toml"
    etc.parent.mkdir()
    monkeypatch.setattr(sources, "DEFAULT_FILE", etc)
    return etc
