"""The control group (version 2) that this process runs in, and the limits of all groups around it."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")


def groups() -> list[Path]:
    """The directories of this process's group and of those around it, the innermost first.

    Empty where there are no control groups of version 2. In a container the outer ones cannot be seen.
    """
    try:
        path = next(line[3:] for line in _SELF.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [_ROOT.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def value(group: Path, name: str) -> str | None:
    """What a file of a group says; None where it is not there."""
    try:
        return (group / name).read_text().strip()
    except OSError:
        return None


def number(group: Path, name: str, key: str = "") -> int | None:
    """A number of a file: all of it, or behind `key` in a file of keys; None where it is not there, or `max`."""
    text = value(group, name) or ""
    if key:
        text = next((line.removeprefix(f"{key} ") for line in text.splitlines() if line.startswith(f"{key} ")), "")
    return int(text) if text.isdigit() else None
