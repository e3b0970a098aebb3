"""Write docs/configuration.md: `python -m edged.config docs/configuration.md`."""

from __future__ import annotations

import sys
from pathlib import Path

from edged.config.sample import markdown

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m edged.config FILE.md")
    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
