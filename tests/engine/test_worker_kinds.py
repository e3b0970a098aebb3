"""The worker with models whose memory cannot be shared or cut: recurrent, hybrid, and with a sliding window.

A plain one, in which it can, is asked the same, so that a test that could not fail would show.
"""

from __future__ import annotations

import ctypes
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp as llama
import pytest

from edged.engine.channel import Channel
from edged.engine.model import LogTap, Model
from edged.engine.protocol import Cancel, Finished, Generate, Load
from edged.engine.pulse import Pulse
from edged.engine.scheduler import Slice
from edged.engine.sequence import Sequence
from edged.engine.worker import Worker
from tests.engine import kinds
from tests.engine.handles import Handle
from tests.engine.kinds import KINDS, letters
from tests.engine.simulated import Priced
from tests.engine.talk import DEFAULTS, Talk

#: (length, seed) of prompts; one is longer than the window, one than a physical batch of 64 tokens, one than a batch.
PROMPTS = [letters(length, length) for length in (20, 45, 90, 200, 600)]
TOKENS = 32

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models by their kinds."""
    directory = tmp_path_factory.mktemp("kinds")
    paths = {kind: directory / f"{kind}.gguf" for kind in KINDS}
    for kind, path in paths.items():
        kinds.write(path, kind)
    return paths


def loading(path: Path, **fields: Any) -> Load:
    """Without flash attention: on a CPU its numbers depend more on the batch, and the texts are to be compared."""
    defaults = {"context": 2048, "parallel": 6, "threads": 1, "digest": "known", "flash_attention": "off"}
    return Load(path=str(path), **{**defaults, **fields})


@contextmanager
def talking(path: Path, **fields: Any) -> Iterator[Talk]:
    with Handle(loading(path, **fields)) as handle:
        yield Talk(handle)


@cache
def alone(path: Path, prompt: str, tokens: int = TOKENS) -> str:
    """What an engine says that has never heard anything else."""
    with talking(path) as talk:
        return talk.say(prompt, max_tokens=tokens).text


@every_kind
def test_what_is_said_depends_on_the_first_letter_that_was_read(files: dict[str, Path], kind: str) -> None:
    """Else the other tests would not notice what is lost."""
    prompt = PROMPTS[2]
    with talking(files[kind]) as talk:
        said = {talk.say(first + prompt[1:], max_tokens=TOKENS).text for first in "abcdef"}
    assert len(said) > 3


@every_kind
def test_the_same_again_is_answered_alike_and_only_what_can_be_shared_is_taken_over(
    files: dict[str, Path], kind: str
) -> None:
    with talking(files[kind]) as talk:
        first, second = (talk.say(PROMPTS[2], max_tokens=TOKENS) for _ in range(2))
    assert first.text == second.text
    assert (first.end.reason, first.end.completion_tokens) == ("length", TOKENS)
    assert first.end.cached_tokens == 0
    assert second.end.cached_tokens == (second.end.prompt_tokens - 1 if KINDS[kind].shares else 0)


@every_kind
def test_a_longer_prompt_takes_over_its_beginning_only_where_that_can_be_shared(
    files: dict[str, Path], kind: str
) -> None:
    longer = PROMPTS[2] + PROMPTS[3]
    with talking(files[kind]) as talk:
        talk.say(PROMPTS[2], max_tokens=2)
        answer = talk.say(longer, max_tokens=TOKENS)
    assert (answer.end.cached_tokens > 80) == KINDS[kind].shares
    assert answer.end.cached_tokens > 80 or answer.end.cached_tokens == 0
    assert answer.text == alone(files[kind], longer)


@every_kind
def test_several_at_once_say_what_each_says_alone(files: dict[str, Path], kind: str) -> None:
    with talking(files[kind]) as talk:
        single = [talk.say(prompt, max_tokens=TOKENS).text for prompt in PROMPTS]
    with talking(files[kind]) as talk:
        answers = talk.finish(*[talk.ask(prompt, max_tokens=TOKENS) for prompt in PROMPTS])
    assert [answer.text for answer in answers] == single
    assert len(set(single)) == len(PROMPTS)


@every_kind
@pytest.mark.parametrize("given", [1, 15])
def test_an_answer_goes_on_with_the_next_token(files: dict[str, Path], kind: str, given: int) -> None:
    with talking(files[kind]) as talk:
        whole = talk.say(PROMPTS[1], max_tokens=TOKENS)
    with talking(files[kind]) as talk:  # another child: the one that began is gone
        rest = talk.say(PROMPTS[1], max_tokens=TOKENS, generated=whole.ids[:given])
    assert rest.ids == whole.ids[given:]
    assert whole.text.endswith(rest.text)


class Stepped:
    """A worker in this process, whose steps the test takes itself, and has aborted where it likes.

    Attributes:
        nodes: of the last step's graphs, as llama.cpp asks at each whether to abort; 0 where it does not ask.
        aborted: whether the last step was.
    """

    def __init__(self, load: Load, channel: Channel, model: Model, pulse: Pulse) -> None:
        self._worker = Worker(channel, model, pulse, load)
        self._worker._scheduler.costs = Priced()
        self._uid = 0
        self._abort_at: int | None = None
        self._texts: dict[int, str] = {}
        self._ends: dict[int, Finished] = {}
        self.nodes = 0

    @property
    def aborted(self) -> bool:
        return self._abort_at is not None and self.nodes > self._abort_at

    def asked(self, _user_data: ctypes.c_void_p) -> bool:
        self.nodes += 1
        return self.aborted

    def ask(self, prompt: str, **fields: Any) -> int:
        """With `max_tokens` as all tests have it."""
        self._uid += 1
        self._texts[self._uid] = ""
        self._worker._obey(Generate(uid=self._uid, prompt=prompt, **(DEFAULTS | {"max_tokens": TOKENS} | fields)))
        return self._uid

    def cancel(self, uid: int) -> None:
        self._worker._obey(Cancel(uid))

    def sequence(self, uid: int) -> Sequence:
        found = self._worker._scheduler.find(uid)
        assert found is not None
        return found

    def step(self, abort_at: int | None = None) -> list[Slice]:
        self.nodes, self._abort_at = 0, abort_at
        slices = self._worker._scheduler.plan()
        self._worker._step(slices)
        step = self._worker._unsent.take(time.monotonic())
        for uid, text, _ in step.deltas:
            self._texts[uid] += text
        self._ends |= {finished.uid: finished for finished in step.finished}
        return slices

    def text(self, uid: int) -> str:
        """Of a whole answer."""
        while uid not in self._ends:
            self.step()
        return self._texts[uid]

    def end(self, uid: int) -> Finished:
        return self._ends[uid]

    def said(self, uid: int) -> str:
        """So far."""
        return self._texts[uid]


@contextmanager
def stepped(load: Load, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stepped]:
    log, pulse = LogTap(lambda _level, _line: None), Pulse()
    callbacks: list[Any] = []

    def count_instead(context: int, _callback: Any, _user_data: ctypes.c_void_p) -> None:
        """The engine asks to be aborted by a flag; at which node it is set nobody could say."""
        callbacks.append(llama.ggml_abort_callback(asked))
        set_callback(context, callbacks[-1], ctypes.c_void_p(0))

    def asked(user_data: ctypes.c_void_p) -> bool:
        return rig.asked(user_data)  # there is none yet when the model asks for the callback

    set_callback: Callable[..., None] = llama.llama_set_abort_callback
    here, there = socket.socketpair()
    with here, there, monkeypatch.context() as patch:
        patch.setattr(llama, "llama_set_abort_callback", count_instead)
        model = Model(load, on_progress=lambda _fraction: None, log=log, abort_flag=pulse.abort_flag)
        rig = Stepped(load, Channel(here), model, pulse)
        try:
            yield rig
        finally:
            model.close()
            # The log's callback dies with `log`: back to the default before that.
            llama.llama_log_set(llama.llama_log_callback(), ctypes.c_void_p(0))
            pulse.close()


def aborted_texts(
    load: Load, monkeypatch: pytest.MonkeyPatch, part: float, scene: Callable[[Stepped], list[int]]
) -> list[str]:
    """What is said of all that were asked in a scene when the step after it is aborted.

    Args:
        load: the model.
        monkeypatch: to abort.
        part: of that step's nodes, which are computed before.
        scene: asks and steps; returns the uids.
    """
    with stepped(load, monkeypatch) as rig:  # first without, to see how many nodes there are
        scene(rig)
        rig.step()
        nodes = rig.nodes
    with stepped(load, monkeypatch) as rig:
        uids = scene(rig)
        rig.step(abort_at=int(nodes * part))
        assert rig.aborted == (nodes > 0)  # none: this engine cannot be asked to abort such a model
        return [rig.text(uid) for uid in uids]


#: Of the nodes of a step: how many are computed before it is aborted.
PARTS = [0.0, 0.5, 0.9]
every_part = pytest.mark.parametrize("part", PARTS)


@every_kind
def test_a_prompt_is_cancelled_in_the_middle_and_its_neighbour_does_not_notice(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with stepped(loading(files[kind], itl_target_ms=4), monkeypatch) as rig:
        neighbour = rig.ask(PROMPTS[0])
        while not rig.said(neighbour):
            rig.step()
        cancelled = rig.ask(letters(1500, 7))
        while rig.sequence(cancelled).computed < 100:
            rig.step()
        rig.cancel(cancelled)
        said = [rig.text(uid) for uid in (cancelled, neighbour, rig.ask(PROMPTS[1]))]
        end = rig.end(cancelled)
    assert (end.reason, end.completion_tokens, end.prompt_tokens) == ("cancelled", 0, 1502)
    assert said == ["", alone(files[kind], PROMPTS[0]), alone(files[kind], PROMPTS[1])]


@every_kind
def test_whoever_made_way_is_computed_again_and_goes_on_as_before(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Four of 22 tokens and 60 more each: 328, where there is room for 256."""
    prompts = [letters(20, seed) for seed in range(1, 5)]
    with stepped(loading(files[kind], context=256), monkeypatch) as rig:
        uids = [rig.ask(prompt, max_tokens=60) for prompt in prompts]
        texts = [rig.text(uid) for uid in uids]
        ends = [rig.end(uid) for uid in uids]
    assert sum(end.timings["preemptions"] for end in ends) > 0
    assert {(end.reason, end.completion_tokens) for end in ends} == {("length", 60)}
    assert texts == [alone(files[kind], prompt, 60) for prompt in prompts]


@every_kind
@every_part
def test_an_aborted_step_is_done_again_and_everybody_in_it_goes_on(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, part: float
) -> None:
    def scene(rig: Stepped) -> list[int]:
        uids = [rig.ask(prompt) for prompt in PROMPTS[:3]]
        while any(len(rig.said(uid)) < 4 for uid in uids):
            rig.step()
        uids.append(rig.ask(PROMPTS[4]))
        rig.step()
        return uids

    said = aborted_texts(loading(files[kind]), monkeypatch, part, scene)
    assert said == [alone(files[kind], prompt) for prompt in (*PROMPTS[:3], PROMPTS[4])]


@every_kind
@every_part
def test_an_aborted_step_costs_nothing_to_those_who_were_not_in_it(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, part: float
) -> None:
    """Where a step takes two of three prompts, llama.cpp may move the third's state, to bring theirs together."""
    prompts = [PROMPTS[0], PROMPTS[4], letters(130, 6), letters(50, 5)]

    def scene(rig: Stepped) -> list[int]:
        uids = [rig.ask(prompts[0])]
        while not rig.said(uids[0]):
            rig.step()
        uids += [rig.ask(prompt) for prompt in prompts[1:3]]
        while rig.sequence(uids[2]).computed < 50:
            rig.step()
        uids.append(rig.ask(prompts[3]))
        return uids

    said = aborted_texts(loading(files[kind], itl_target_ms=4), monkeypatch, part, scene)
    assert said == [alone(files[kind], prompt) for prompt in prompts]


@every_kind
@every_part
def test_an_aborted_step_takes_no_more_than_its_own_tokens_from_the_window(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, part: float
) -> None:
    """Cells that the window has left behind are written over, here after those that another request has freed."""
    before, prompt = letters(300, 1), letters(520, 3)

    def scene(rig: Stepped) -> list[int]:
        first = rig.ask(before, max_tokens=1000)
        while not rig.said(first):
            rig.step()
        uid = rig.ask(prompt)
        while rig.sequence(uid).computed < 40:
            rig.step()
        rig.cancel(first)
        return [uid]

    said = aborted_texts(loading(files[kind], itl_target_ms=4, prefix_cache=False), monkeypatch, part, scene)
    assert said == [alone(files[kind], prompt)]
