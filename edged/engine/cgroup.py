"""The control groups that this process runs in, and the limits of all groups around them.

Version 2 has one tree of groups for everything, version 1 one for each controller; a machine may have both, each
controller in one of them. Their files have different names (cgroups(7)).
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")


def groups(controller: str) -> list[Path]:
    """The directories of this process's group and of those around it, the innermost first.

    In a container the outer ones cannot be seen. With version 1 the own one is the outermost directory there, whatever
    its path is said to be.

    Args:
        controller: `memory` or `cpu`; which tree counts where there are several.
    """
    try:
        lines = _SELF.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and controller not in controllers.split(","):
            continue
        root = _ROOT if number == "0" else _ROOT / controller
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [root.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
    return found


def value(group: Path, name: str) -> str | None:
    """What a file of a group says; None where it is not there."""
    try:
        return (group / name).read_text().strip()
    except OSError:
        return None


def numbers(group: Path, *names: str) -> list[int]:
    """The numbers in those of these files that are there and have one."""
    return [found for name in names if (found := number(group, name)) is not None]


def number(group: Path, name: str, key: str = "") -> int | None:
    """A number of a file: all of it, or behind `key` in a file of keys; None where it is not there, or `max`."""
    text = value(group, name) or ""
    if key:
        text = next((line.removeprefix(f"{key} ") for line in text.splitlines() if line.startswith(f"{key} ")), "")
    return int(text) if text.isdigit() else None
