"""From an order to a sequence."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from edged.engine import reader
from edged.engine.protocol import Generate
from edged.engine.sampling import Sampler, SamplingParams
from tests.engine.kinds import letters
from tests.engine.rig import Rig
from tests.engine.talk import DEFAULTS


def test_without_a_thread_to_read_it_with_a_long_prompt_is_refused_and_the_others_go_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    rig.ask(1, letters(20, 1))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        rig.worker._obey(Generate(uid=2, prompt=letters(5000, 2), **DEFAULTS))
    [end] = rig.worker._unsent.take(time.monotonic()).finished
    assert (end.uid, end.reason, end.error) == (2, "error", "internal")
    assert end.message == "no thread could be started to read the prompt (can't start new thread): try again"
    said = len(rig.said[1])
    rig.turn()
    assert len(rig.said[1]) == said + 1


def test_the_seed_that_llama_cpp_takes_for_chance_is_none_for_an_answer_that_goes_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def note(params: SamplingParams, size: int) -> Sampler:
        seeds.append(params.seed)
        return Sampler(params, size)

    monkeypatch.setattr(reader, "Sampler", note)
    for uid, said in enumerate(([], [40], [40, 41]), start=1):
        fields: dict[str, Any] = {"seed": 2**32 - 2, "temperature": 1.0, "max_tokens": 9, "generated": said}
        rig.ask(uid, letters(20, 1), **fields)
    assert seeds == [2**32 - 2, 0, 1]
