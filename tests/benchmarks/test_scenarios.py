"""Every scenario, made tiny, on the starter model and a real broker. No timing is asserted: speed is not promised here.

Throughput is run by `test_serving.py`, as `make bench` does it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from benchmarks import beside
from benchmarks.client import Client, Exchange
from benchmarks.figures import BenchmarkError
from benchmarks.scenarios import (
    cancel,
    crowd,
    death,
    highlevel,
    journal,
    memory,
    mixed,
    neighbours,
    overhead,
    soak,
    ttft,
)
from benchmarks.scene import Scene
from benchmarks.turns import Turns
from edged.config import Settings
from edged.config.settings import Model
from tests import brokers

pytestmark = [pytest.mark.model, pytest.mark.broker]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    try:
        brokers.binary()
    except brokers.NoBrokerError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    for name in [name for name in os.environ if name.startswith("EDGED_")]:
        monkeypatch.delenv(name)
    # one thread: two wait for each other, for long where the tests' machine is busy
    settings = Settings(models=(Model(context=1024, parallel=4, threads=1),))
    return Scene(settings=settings, directory=tmp_path, seconds=0.3, quick=True, repacked=False)


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes have turns that are short beside the answers, however fast the machine is."""
    monkeypatch.setattr(beside, "Turns", partial(Turns, turn_s=0.03))


@pytest.mark.usefixtures("short_turns")
def test_crowd(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "_FEW", 2)
    monkeypatch.setattr(crowd, "_MANY", 4)
    monkeypatch.setattr(crowd, "_TOKENS", 96)
    (rates,) = crowd.measure(scene).forms.values()
    assert len(rates.few) == len(rates.many) == 1
    assert min(*rates.few, *rates.many) > 0


def test_overhead(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "_STREAMS", (1, 2, 64))
    monkeypatch.setattr(overhead, "_QUICK_TOKENS", 12)
    told = overhead.measure(scene)
    assert list(told.streams) == [1, 2]  # 64 are more than the node serves at once
    for steps in told.streams.values():
        assert all(0 < rest < step for rest, step in zip(steps.rest_ms, steps.step_ms, strict=True))


def test_ttft(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttft, "_SHARED", 120)
    told = ttft.measure(scene)
    assert [(one.before, len(one.node_ms), len(one.bare_ms)) for one in told.short] == [(1, 3, 3), (4, 3, 3)]
    assert told.prompt_tokens == 65
    assert min(told.cached_tokens) >= 100
    assert max(told.cached_tokens) < told.long_tokens


def test_mixed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed, "_LONG", 300)
    monkeypatch.setattr(mixed, "_STREAMS", 2)
    [[case]] = mixed.measure(scene).forms.values()
    assert case.prompt_tokens == 299
    assert case.before_ms
    assert case.while_ms
    assert len(case.node_max_itl_ms) == 2
    assert case.alone_ms > 0
    before, most, after = case.memory
    assert min(before, after) > 100 * 2**20
    assert most > max(before, after) - 4 * 2**20


def test_the_gaps_before_are_those_of_streams_as_long_as_then() -> None:
    """The longer they are, the longer takes a step: that is nothing that the prompt does."""
    stream = Exchange("a", 0.0, chunks=[(at, 1) for at in (1.0, 2.0, 2.5, 2.75, 3.0, 3.25)])
    assert mixed.gaps_before([stream, stream], 0.5, 3.0) == [500, 250, 250] * 2
    assert mixed.gaps_before([stream], 2.6, 3.0) == [250, 250]


@pytest.mark.parametrize("times", [1, 3])
def test_mixed_is_tried_again_where_the_model_ends_a_stream(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(mixed, "_LONG", 100)
    monkeypatch.setattr(mixed, "_STREAMS", 1)
    ask, left = Client.ask, [3] * times

    def ends(self: Client, prompt: str, max_tokens: int) -> Exchange:
        is_stream = max_tokens > 4
        return ask(self, prompt, left.pop() if is_stream and left else max_tokens)

    monkeypatch.setattr(Client, "ask", ends)
    if times == 3:
        with pytest.raises(BenchmarkError, match="3 times a stream ended"):
            mixed.measure(scene)
    else:
        [[case]] = mixed.measure(scene).forms.values()
        assert case.while_ms


def test_cancel(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel, "_LONG", 1200)
    monkeypatch.setattr(cancel, "_BEGUN", 64)
    monkeypatch.setattr(cancel, "_TOKENS", 24)
    monkeypatch.setattr(cancel, "_QUICK_REPEATS", 1)
    told = cancel.measure(scene)
    assert (len(told.latency_ms), told.neighbours) == (1, 2)
    assert 64 <= told.prefilled[0] < told.prompt_tokens


def test_memory(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_TOKENS", 4)
    monkeypatch.setattr(memory, "_QUICK_IDLE_S", 0.5)
    monkeypatch.setattr(memory, "_QUICK_LONG", (150,))
    told = memory.measure(scene)
    assert told.kv == 30 * 1024 * 3 * (64 + 64) * 2  # SmolLM2-135M: 30 layers, 3 heads of 64 numbers, 2 bytes each
    assert list(told.resident) == ["the streams", "long prompts"]
    assert min(told.rest.values()) > 0
    assert told.idle.keys() == {"engine", "daemon", "broker"}


def test_soak(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "_QUICK_REQUESTS", 20)
    told = soak.measure(scene)
    assert (told.requests, told.settled, told.wrong) == (20, 2, [])
    assert told.early.keys() == told.late.keys() == {"daemon", "engine"}


def test_death(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(death, "_STREAMS", 2)
    monkeypatch.setattr(death, "_TOKENS", 40)
    monkeypatch.setattr(death, "_SIGNALS", (signal.SIGKILL,))
    (case,) = death.measure(scene).signals.values()
    assert (case.streams, case.wrong) == (2, [])
    assert case.recovery_s is not None


def test_highlevel(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highlevel, "_QUICK_TOKENS", 8)
    told = highlevel.measure(scene)
    assert len(told.theirs) == len(told.node) == 1
    for side in (*told.theirs, *told.node):
        assert min(side.tokens_per_s, side.ttft_ms, side.together_per_s) > 0


@pytest.mark.usefixtures("short_turns")
def test_journal(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_STREAMS", 2)
    monkeypatch.setattr(journal, "_QUICK_TOKENS", 120)
    monkeypatch.setattr(journal, "_QUICK_PAIRS", 1)
    monkeypatch.setattr(journal, "_BURSTS", 20)
    told = journal.measure(scene)
    assert len(told.on) == len(told.off) == 1
    assert told.write_us > 0


def test_neighbours(scene: Scene) -> None:
    (case,) = neighbours.measure(scene).cases
    assert (case.programs, case.streams) == (1, 2)
    assert min(*case.on, *case.off) > 0


class Slow:
    """A node of which no token comes in time, and one each whenever that is waited for."""

    def __init__(self) -> None:
        self.asked: list[Exchange] = []

    def ask(self, _prompt: str, _max_tokens: int) -> Exchange:
        self.asked.append(Exchange(str(len(self.asked)), time.monotonic()))
        return self.asked[-1]

    def within(self, _condition: Callable[[], bool], _patience_s: float) -> bool:
        return False

    def until(self, condition: Callable[[], bool], _what: str, *, patience_s: float) -> None:
        assert patience_s > 60
        while not condition():
            time.sleep(0.01)
            for one in self.asked:
                one.chunks.append((time.monotonic(), 1))

    def cancel(self, _exchange: Exchange) -> None:
        pass

    def finish(self, asked: list[Exchange]) -> None:
        assert asked == self.asked


def test_a_node_that_stands_still_has_a_rate_all_the_same(scene: Scene) -> None:
    rate = neighbours._rate(scene, cast("Client", Slow()), neighbours.Case(1, 2, [], []), seed=1)
    assert 0 < rate < 201
