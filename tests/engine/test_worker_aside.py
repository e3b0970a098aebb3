"""The worker with a long prompt beside running streams: it is computed aside, and nobody is the worse for it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import resident
from edged.engine.aside import BLOCK
from edged.engine.process import Lost
from edged.engine.protocol import Load
from tests.engine import kinds
from tests.engine.handles import Handle, running, until
from tests.engine.kinds import letters
from tests.engine.talk import Answer, Talk, counted, counting

LONG, TOKENS = letters(1200, 7), 32


def loading(path: Path, **fields: Any) -> Load:
    """So short a target leaves a prompt one token in each step of others. Two threads: one of them is for asides."""
    defaults = {"context": 4096, "parallel": 4, "threads": 2, "digest": "known", "itl_target_ms": 0.001}
    return Load(path=str(path), **{"flash_attention": "off", **defaults, **fields})


@contextmanager
def talking(path: Path, **fields: Any) -> Iterator[Talk]:
    with Handle(loading(path, **fields)) as handle:
        yield Talk(handle)


def stream(talk: Talk, *, max_tokens: int = 2500) -> int:
    """A request that is generating, for long enough that the engine knows what a step costs."""
    uid = talk.ask(letters(20, 1), max_tokens=max_tokens)
    while talk.answers[uid].tokens < 10:
        talk.listen()
    return uid


def begin_aside(talk: Talk, prompt: str = LONG, **fields: Any) -> int:
    """A request of which a block was computed aside."""
    uid = talk.ask(prompt, progress=True, **({"max_tokens": TOKENS} | fields))
    while not aside(talk.answers[uid]):
        talk.listen()
        assert talk.answers[uid].finished is None
    return uid


def steps(answer: Answer) -> list[int]:
    """Tokens of its prompt by which it got on at once."""
    return [after - before for before, after in itertools.pairwise([0, *(done for done, _ in answer.prefill)])]


def aside(answer: Answer) -> int:
    """Tokens of its prompt that came in whole blocks: while others generate, a step takes one or a few along."""
    return sum(step for step in steps(answer) if step >= BLOCK)


def alone(path: Path, prompt: str) -> str:
    with talking(path) as talk:
        return talk.say(prompt, max_tokens=TOKENS).text


def test_it_is_computed_block_by_block_and_answered_as_if_it_were_alone(plain: Path) -> None:
    with talking(plain) as talk:
        neighbour = stream(talk)
        long = begin_aside(talk)
        [answer] = talk.finish(long)
        assert talk.answers[neighbour].finished is None, "it ran all the time"
        talk.cancel(neighbour)
        [beside] = talk.finish(neighbour)
        notes = talk.notes
    assert aside(answer) > 900
    assert answer.prefill[-1] == (answer.end.prompt_tokens, answer.end.prompt_tokens)
    assert (answer.end.reason, answer.end.completion_tokens) == ("length", TOKENS)
    assert answer.text == alone(plain, LONG)
    assert beside.text.startswith(alone(plain, letters(20, 1)))
    assert notes == [], "it is nothing to tell the operator"


def test_what_was_cached_of_it_goes_along(plain: Path) -> None:
    with talking(plain) as talk:
        talk.say(LONG[:700], max_tokens=1)
        stream(talk)
        [answer] = talk.finish(begin_aside(talk))
    assert answer.end.cached_tokens >= 690
    assert answer.text == alone(plain, LONG)


def test_several_have_their_turns(plain: Path) -> None:
    prompts = [letters(900, seed) for seed in (2, 3)]
    with talking(plain) as talk:
        stream(talk)
        answers = talk.finish(*[talk.ask(prompt, max_tokens=TOKENS, progress=True) for prompt in prompts])
    assert all(aside(answer) > 300 for answer in answers)
    assert [answer.text for answer in answers] == [alone(plain, prompt) for prompt in prompts]


@pytest.mark.model
def test_it_is_cancelled_in_the_middle_and_the_next_has_its_turn(starter: Path) -> None:
    """The real model needs seconds for the rest of it: the smaller ones have done that before a cancel can come."""
    with talking(starter, flash_attention="auto") as talk:
        neighbour = talk.ask(counting(), max_tokens=1000)
        while not talk.answers[neighbour].deltas:
            talk.listen()
        cancelled = begin_aside(talk, counting(2, length=400))
        talk.cancel(cancelled)
        [answer] = talk.finish(cancelled)
        [after] = talk.finish(begin_aside(talk, counting(1, length=130), max_tokens=12))
        assert talk.answers[neighbour].finished is None
        talk.cancel(neighbour)
        [beside] = talk.finish(neighbour)
    assert (answer.end.reason, answer.end.completion_tokens) == ("cancelled", 0)
    assert 0 < answer.prefill[-1][0] < answer.prefill[-1][1]
    assert after.text.startswith(counted(131, 2))
    assert beside.text.startswith(counted(8, 5))


def test_where_the_cache_becomes_too_small_it_is_computed_again_and_all_end_well(plain: Path) -> None:
    prompts = [letters(500, seed) for seed in (2, 3, 4)]
    with talking(plain, context=1280) as talk:
        neighbour = stream(talk, max_tokens=700)
        answers = talk.finish(*[talk.ask(prompt, max_tokens=TOKENS, progress=True) for prompt in prompts])
        [beside] = talk.finish(neighbour)
    assert any(aside(answer) for answer in answers)
    assert (beside.end.reason, beside.end.completion_tokens) == ("length", 700)
    assert [answer.text for answer in answers] == [alone(plain, prompt) for prompt in prompts]


def test_with_one_thread_it_is_computed_with_the_others(plain: Path) -> None:
    with talking(plain, threads=1) as talk:
        stream(talk)
        [answer] = talk.finish(talk.ask(LONG[:300], max_tokens=TOKENS, progress=True))
    assert aside(answer) == 0
    assert answer.text == alone(plain, LONG[:300])


def test_a_model_whose_cells_cannot_be_moved_computes_it_with_the_others(tmp_path: Path) -> None:
    kinds.write(tmp_path / "window.gguf", "window")
    with talking(tmp_path / "window.gguf") as talk:
        stream(talk)
        [answer] = talk.finish(talk.ask(LONG[:300], max_tokens=TOKENS, progress=True))
    assert aside(answer) == 0
    assert answer.text == alone(tmp_path / "window.gguf", LONG[:300])


def test_the_child_ends_at_once_when_the_daemon_goes(plain: Path) -> None:
    with Handle(loading(plain)) as handle:
        talk = Talk(handle)
        pid = handle.engine.pid
        assert pid is not None
        stream(talk)
        begin_aside(talk, letters(3000, 4))
        began = time.monotonic()
    until(lambda: not running(pid))
    assert time.monotonic() - began < 5
    assert not [report for _, report in handle.heard if isinstance(report, Lost)]


@pytest.mark.model
def test_the_contexts_in_which_prompts_were_computed_leave_no_memory_behind(starter: Path) -> None:
    """Each of them has 6 to 23 MiB of cells; glibc would keep 28 MiB after these."""
    with Handle(loading(starter, flash_attention="auto")) as handle:
        talk = Talk(handle)
        assert handle.engine.pid is not None
        neighbour = talk.ask(counting(), max_tokens=2000)
        while not talk.answers[neighbour].deltas:
            talk.listen()
        before = resident(handle.engine.pid)
        for start, length in ((100, 60), (200, 200), (300, 130)):
            talk.finish(begin_aside(talk, counting(start, length=length), max_tokens=2))
        assert resident(handle.engine.pid) - before < 16 * 2**20
        talk.cancel(neighbour)
        talk.finish(neighbour)


@pytest.mark.model
@pytest.mark.parametrize("load", [{}, {"kv_type": "q8_0"}], ids=str)
def test_a_real_model_remembers_what_it_read_aside(starter: Path, load: dict[str, Any]) -> None:
    with talking(starter, flash_attention="auto", **load) as talk:
        neighbour = talk.ask(counting(), max_tokens=1000)
        while not talk.answers[neighbour].deltas:
            talk.listen()
        long = begin_aside(talk, counting(1, length=130), max_tokens=12)  # "1, 2, … 130,"
        [answer] = talk.finish(long)
        talk.cancel(neighbour)
        talk.finish(neighbour)
    assert answer.text.startswith(counted(131, 2))
