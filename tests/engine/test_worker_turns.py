"""The worker's turns, in the test's own process."""

from __future__ import annotations

import llama_cpp as llama
import pytest

from edged.engine.context import ABORTED, Context, DecodeError
from tests.engine.kinds import letters
from tests.engine.rig import Rig


def test_the_step_after_one_that_was_aborted_asks_not_to_be(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one cancel after the other nobody would get on."""
    real, aborts, again = Context.decode, [False, True, True, False, False], list[bool]()

    def decode(self: Context, batch: llama.llama_batch) -> None:
        again.append(rig.pulse.again)
        if aborts[len(again) - 1]:
            raise DecodeError(ABORTED)
        real(self, batch)

    rig.ask(1, letters(20, 1))
    monkeypatch.setattr(Context, "decode", decode)
    said = len(rig.said[1])
    for _ in aborts:
        rig.turn()
    assert again == [False, False, True, True, False]
    assert len(rig.said[1]) == said + 3
