"""Where the broken daemons put themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Patch = pytest.MonkeyPatch
Change = Callable[[Patch], None]
#: What breaks a daemon, by what is wrong with it then.
BROKEN: dict[str, Change] = {}


def broken(name: str) -> Callable[[Change], Change]:
    """Name the daemon that a change breaks: it is true of it that `name`."""

    def add(change: Change) -> Change:
        BROKEN[name] = change
        return change

    return add


def around(patch: Patch, owner: type, name: str, change: Callable[..., Any]) -> None:
    """Replace a method with `change(original, self, …)`."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda self, *args, **named: change(original, self, *args, **named))
