"""The daemon's settings: what there is, where it is read from, and its documentation."""

from __future__ import annotations

from edged.config.errors import ConfigError
from edged.config.sample import markdown, sample, summary
from edged.config.settings import Settings
from edged.config.sources import Sources, check_files, load, secret_warnings

__all__ = [
    "ConfigError",
    "Settings",
    "Sources",
    "check_files",
    "load",
    "markdown",
    "sample",
    "secret_warnings",
    "summary",
]
