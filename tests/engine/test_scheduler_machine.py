"""The scheduler against a simulated model that believes nothing: whatever comes, nothing is lost, doubled, starved."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edged.engine.sequence import Sequence
from tests.engine.simulated import Machine, sequence, token


class Requests(RuleBasedStateMachine):
    """Requests that come, end, are cancelled and are sent away, at a model whose cache is too small for them all."""

    @initialize(
        cells=st.integers(40, 200),
        slots=st.integers(1, 6),
        batch=st.integers(8, 40),
        itl_s=st.floats(0.005, 0.2),
        cached=st.integers(0, 5),
        ubatch=st.sampled_from([5, 8, 0]),
    )
    def start(self, cells: int, slots: int, batch: int, itl_s: float, cached: int, ubatch: int) -> None:
        self.hiccup = 1.0
        self.cancelled: dict[int, int] = {}
        self.asked: dict[int, tuple[int, int, int]] = {}
        self.machine = Machine(
            cells=cells,
            slots=slots,
            batch=batch,
            ubatch=ubatch,
            cached=cached,
            itl_target_s=itl_s,
            cost=lambda decoding, prefill: self.hiccup * (0.01 + 0.001 * decoding + 0.002 * prefill),
        )

    @rule(
        share=st.floats(0.01, 0.99),
        max_tokens=st.integers(1, 80),
        answer=st.integers(0, 80),
        alike=st.floats(0, 1),
        shared=st.sampled_from([0, 0, 20, 40]),
        owner=st.sampled_from("ab"),
        exact=st.booleans(),
    )
    def ask(
        self, share: float, max_tokens: int, answer: int, alike: float, shared: int, owner: str, exact: bool
    ) -> None:
        uid = len(self.asked) + 1
        prompt = max(1, int(share * self.machine.cells))
        common = int(alike * prompt)
        # All begin alike as far as the operator's words go, then like others of the same owner.
        tokens = [*range(1, min(shared, common) + 1)]
        tokens += [1000 * (ord(owner) - 90) + i for i in range(len(tokens), common)]
        tokens += [-(uid * 10_000 + i) for i in range(common, prompt)]
        self.asked[uid] = prompt, max_tokens, answer
        self.machine.answers[uid] = answer
        shared = min(shared, common)
        one = sequence(uid, prompt=tokens, max_tokens=max_tokens, owner=owner, shared=shared, exact=exact)
        self.machine.scheduler.add(one)

    @rule()
    def a_step_is_aborted(self) -> None:
        slices = self.machine.scheduler.plan()
        self.machine.scheduler.undo(slices)

    @rule(data=st.data())
    @precondition(lambda self: self.open())
    def cancel(self, data: st.DataObject) -> None:
        one = self.one_of(data, self.open())
        self.cancelled[one.uid] = one.generated
        self.machine.finish(one, "cancelled")

    @rule(data=st.data())
    @precondition(lambda self: self.open())
    def hold(self, data: st.DataObject) -> None:
        self.one_of(data, self.open()).timing.hold(0.0)

    @rule(data=st.data())
    @precondition(lambda self: self.held())
    def release(self, data: st.DataObject) -> None:
        self.one_of(data, self.held()).timing.release(0.0)

    @rule(data=st.data())
    @precondition(lambda self: self.prefilling())
    def go_aside(self, data: st.DataObject) -> None:
        self.one_of(data, self.prefilling()).is_aside = True

    @rule(data=st.data(), count=st.integers(1, 100), ends=st.booleans())
    @precondition(lambda self: self.aside())
    def what_was_computed_aside_comes_back(self, data: st.DataObject, count: int, *, ends: bool) -> None:
        one = self.one_of(data, self.aside())
        computed = one.computed
        self.machine.come_back(one, count)
        assert one.computed in (computed + count, len(one.tokens) - 1, 0), "all of it, or it had to make way"
        if ends or one.pending == 1:
            one.is_aside = False

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.oldest_goes_on()

    @rule()
    def the_real_cache_has_no_room(self) -> None:
        """What llama.cpp may say although the figures are right: then the worker sends the youngest away."""
        running = self.machine.scheduler.running
        before = self.machine.kv.used
        assert self.machine.scheduler.make_room() in (len(running) > 1, True)
        assert self.machine.kv.used <= before

    @rule(factor=st.sampled_from([0.01, 1.0, 100.0]))
    def costs_change(self, factor: float) -> None:
        self.hiccup = factor

    def open(self) -> list[int]:
        return [uid for uid in self.asked if uid not in self.machine.finished]

    def held(self) -> list[int]:
        found = [self.machine.scheduler.find(uid) for uid in self.open()]
        return [one.uid for one in found if one is not None and one.is_held]

    def prefilling(self) -> list[int]:
        """Those that may go aside: never one that is alone, for then nobody decodes."""
        running = self.machine.scheduler.running
        return [one.uid for one in running if one.pending > 1 and not one.is_resting and not one.is_alone]

    def aside(self) -> list[int]:
        return [one.uid for one in self.machine.scheduler.running if one.is_aside]

    def one_of(self, data: st.DataObject, uids: list[int]) -> Sequence:
        one = self.machine.scheduler.find(data.draw(st.sampled_from(uids)))
        assert one is not None
        return one

    def oldest_goes_on(self) -> None:
        running = [one for one in self.machine.scheduler.running if not one.is_resting]
        held = [(one, len(one.tokens)) for uid in self.held() if (one := self.machine.scheduler.find(uid)) is not None]
        yields = bool(running) and running[0].yields
        step = self.machine.step()
        assert step is not None or (self.machine.scheduler.idle and self.machine.step() is None)
        assert step is not None or self.aside() or self.open() == self.held(), "there is always something to do"
        waits = running and self.aside() and running[0].pending > 128  # for its turn to be computed aside
        gave_way = yields and running[0].slot < 0
        if running and step is not None and not waits and not gave_way:
            assert running[0].uid in {*step.decoded, *step.prefilled}, "the oldest always has its turn"
        assert all(len(one.tokens) == before for one, before in held), "nothing is said for one that is held"

    @invariant()
    def the_figures_agree(self) -> None:
        running = self.machine.scheduler.running
        assert len({one.slot for one in running}) == len(running) <= self.machine.slots
        assert [one.number for one in running] == sorted(one.number for one in running), "the oldest first"
        assert {one.uid for one in running} <= set(self.open())
        assert all(self.machine.scheduler.find(uid) is not None for uid in self.open())
        assert self.machine.kv.used == self.machine.scheduler._used()

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        for uid in self.aside():
            one = self.machine.scheduler.find(uid)
            assert one is not None
            one.is_aside = False
        for uid in self.held():
            if (one := self.machine.scheduler.find(uid)) is not None:
                one.timing.release(0.0)
        self.machine.run()
        assert self.machine.kv.used == self.machine.cache.cells
        assert self.machine.cache.locked == 0
        self.machine.cache.evict(self.machine.cells)
        assert self.machine.kv.of == {}
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
TestRequests.settings = settings(max_examples=60, stateful_step_count=30)
