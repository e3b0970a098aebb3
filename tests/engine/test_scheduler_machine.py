"""The scheduler against a simulated model that believes nothing: whatever comes, nothing is lost, doubled, starved."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.engine.simulated import Machine, sequence, token
from tests.wire.strategies import unhurried


class Requests(RuleBasedStateMachine):
    """Requests that come, end, are cancelled and are sent away, at a model whose cache is too small for them all."""

    @initialize(
        cells=st.integers(40, 200), slots=st.integers(1, 6), batch=st.integers(8, 40), itl_s=st.floats(0.005, 0.2)
    )
    def start(self, cells: int, slots: int, batch: int, itl_s: float) -> None:
        self.hiccup = 1.0
        self.cancelled: dict[int, int] = {}
        self.asked: dict[int, tuple[int, int, int]] = {}
        self.machine = Machine(
            cells=cells,
            slots=slots,
            batch=batch,
            itl_target_s=itl_s,
            cost=lambda decoding, prefill: self.hiccup * (0.01 + 0.001 * decoding + 0.002 * prefill),
        )

    @rule(share=st.floats(0.01, 0.99), max_tokens=st.integers(1, 80), answer=st.integers(0, 80))
    def ask(self, share: float, max_tokens: int, answer: int) -> None:
        uid = len(self.asked) + 1
        prompt = max(1, int(share * self.machine.cells))
        self.asked[uid] = prompt, max_tokens, answer
        self.machine.answers[uid] = answer
        self.machine.scheduler.add(sequence(uid, prompt=prompt, max_tokens=max_tokens))

    @rule(data=st.data())
    @precondition(lambda self: self.open())
    def cancel(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(self.open()))
        one = self.machine.scheduler.find(uid)
        assert one is not None
        self.cancelled[uid] = one.generated
        self.machine.finish(one, "cancelled")

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.oldest_goes_on()

    @rule()
    def the_real_cache_has_no_room(self) -> None:
        """What llama.cpp may say although the figures are right: then the worker sends the youngest away."""
        running = self.machine.scheduler.running
        assert self.machine.scheduler.preempt_youngest() == (len(running) > 1)

    @rule(factor=st.sampled_from([0.01, 1.0, 100.0]))
    def costs_change(self, factor: float) -> None:
        self.hiccup = factor

    def open(self) -> list[int]:
        return [uid for uid in self.asked if uid not in self.machine.finished]

    def oldest_goes_on(self) -> None:
        running = self.machine.scheduler.running
        idle = self.machine.scheduler.idle
        step = self.machine.step()
        assert (step is None) == idle
        if running and step is not None:
            assert running[0].uid in {*step.decoded, *step.prefilled}, "the oldest always has its turn"

    @invariant()
    def the_figures_agree(self) -> None:
        running = self.machine.scheduler.running
        assert len({one.slot for one in running}) == len(running) <= self.machine.slots
        assert {one.uid for one in running} <= set(self.open())
        assert all(self.machine.scheduler.find(uid) is not None for uid in self.open())
        assert self.machine.scheduler.idle == (not self.open())

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        self.machine.run()
        assert self.machine.cache == {}
        assert self.machine.finished.keys() == self.asked.keys()
        for uid, (prompt, max_tokens, answer) in self.asked.items():
            reason, one = self.machine.finished[uid]
            said = one.tokens[prompt:]
            assert said == [token(uid, prompt + i) for i in range(len(said))]
            room = self.machine.cells + 1 - prompt
            if uid in self.cancelled:
                assert (reason, len(said)) == ("cancelled", self.cancelled[uid])
            elif answer < min(max_tokens, room):
                assert (reason, len(said)) == ("stop", answer)
            else:
                assert (reason, len(said)) == ("length", min(max_tokens, room))


TestRequests = pytest.mark.timeout(120)(Requests.TestCase)
TestRequests.settings = settings(unhurried, max_examples=60, stateful_step_count=30)
