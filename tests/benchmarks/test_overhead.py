"""What lies between two calls of llama.cpp: of which steps, and that there are some."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.figures import BenchmarkError
from benchmarks.load import Load, Setup
from benchmarks.scenarios import overhead
from edged.engine import protocol


def test_only_steps_in_which_every_stream_computes_a_token_are_counted() -> None:
    # when, seconds in llama.cpp until then, tokens in the batch: a prefill, three steps of two streams, one of one
    decodes: list[Any] = [(0.0, 0.0, 60), (1.0, 0.9, 2), (1.2, 1.09, 2), (1.5, 1.38, 2), (1.6, 1.47, 1)]
    steps = overhead.Overhead.of(2, decodes)
    assert steps.step_ms == pytest.approx([200, 300])
    assert steps.rest_ms == pytest.approx([10, 10])
    with pytest.raises(BenchmarkError, match="4 streams"):
        overhead.Overhead.of(4, decodes)


def test_nobody_is_done_before_all_have_generated_together() -> None:
    """However long the second's prompt takes beside the first."""
    orders: list[protocol.Order] = []
    steps: Iterator[protocol.Step] = iter(
        [
            *[protocol.Step(deltas=[(0, "a", [7])])] * 99,
            *[protocol.Step(deltas=[(0, "a", [7]), (1, "b", [7])])] * 11,
            protocol.Step(deltas=[(0, "aa", [7, 7]), (1, "b", [7])]),
            protocol.Step(finished=[protocol.Finished(0, "cancelled"), protocol.Finished(1, "cancelled")]),
        ]
    )
    engine: Any = SimpleNamespace(
        process=SimpleNamespace(send=lambda _child, order: orders.append(order)), hear=lambda _deadline: next(steps)
    )
    sampling = {
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    overhead._generate(engine, Setup({"context": 1024}, sampling), Load(2, 12, 1))
    ordered = [one for one in orders if isinstance(one, protocol.Generate)]
    assert [one.max_tokens + len(one.prompt or "") for one in ordered] == [512, 512]
    assert orders[2:] == [protocol.Cancel(0), protocol.Cancel(1)]
    assert next(steps, None) is None
