"""Whether llama.cpp computes on this machine is tried before anybody relies on it."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from deploy import computes
from edged.tune.child import Trials


@pytest.mark.model
def test_here_it_does(capfd: pytest.CaptureFixture[str]) -> None:
    assert computes.main() == 0
    assert capfd.readouterr() == ("", "")


def test_where_it_does_not_it_is_told_why_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    dies = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.setattr(computes, "Trials", partial(Trials, dies))
    assert computes.main() == 1
    said = capfd.readouterr().err
    assert said.startswith("edged: llama.cpp does not compute on this machine: its process was ended by SIGILL")
    assert "compile it anew" in said
