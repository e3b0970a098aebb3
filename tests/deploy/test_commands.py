"""The commands that people are told: the Makefile, CI, and what the README says of them."""

from __future__ import annotations

import re
import subprocess

from deploy.demo import PROMPT
from tests.deploy.tools import ROOT, program

README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_make_alone_lists_what_can_be_done() -> None:
    make = [program("make", "make"), "--no-print-directory"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    listed = set(re.findall(r"^  make ([a-z]+) +\S", done.stdout, re.MULTILINE))
    assert listed >= {"setup", "demo", "run", "test", "lint", "types", "docs", "bench", "clean"}


def test_the_readme_asks_what_the_demo_asks() -> None:
    assert f"-m '{PROMPT}'" in README


def test_ci_runs_the_readmes_commands_and_the_tests_last() -> None:
    steps = re.findall(r"^step \S+ (make [a-z]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert steps[-1] == "make test"
    for command in ("make demo", "make test"):
        assert command in steps
        assert re.search(rf"^{command}\b", README, re.MULTILINE)


def test_pytest_is_the_last_thing_that_make_test_runs() -> None:
    """So that its summary is at the end of CI's output."""
    recipe = re.search(r"^test:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    assert "-m pytest" in recipe[1].splitlines()[-1]
