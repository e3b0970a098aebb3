from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.clean import clean_environment


@pytest.fixture(autouse=True)
def etc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What stands for /etc/edged/edged.toml; it does not exist yet."""
    return clean_environment(monkeypatch, tmp_path)
