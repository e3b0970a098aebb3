"""A world: a daemon, its disk and engine, a broker and consumers, all driven by one seed; and what it must come to."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace

from tests.simulation.broker import Behaviour, Broker, Message
from tests.simulation.checks import Broken, Checks
from tests.simulation.clock import Agenda, Clock
from tests.simulation.consumer import BASE, Asked, Consumer
from tests.simulation.disk import Disk
from tests.simulation.engine import Engine
from tests.simulation.faults import Faults
from tests.simulation.node import Node
from tests.simulation.plan import Plan

#: After the faults everything has to come to its end within so long, seconds; and each round of asking again.
_CALM_S, _ROUND_S, _ROUNDS = 400.0, 20.0, 12
#: Requests that are replayed at the end.
_REPLAYED = 4


class World:
    """One seed's.

    Args:
        seed: all that happens follows from it.
        trace: keep a line about everything.
    """

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.plan = plan = Plan.draw(rng)
        self.clock = Clock()
        self.agenda = Agenda(self.clock)
        self.checks = Checks(self.clock, trace=trace)
        self.broker = Broker(self.agenda, self.clock, rng, self.checks)
        self.broker.behaviour = plan.behaviour
        self.disk = self.checks.disk = Disk(self.agenda, self.clock, rng, sync_s=plan.sync_s)
        self.broker.session("edged-n", self._is_request, window=plan.windows[1], most=plan.most_queued[0])
        self.broker.session("edged-n-ctl", self._is_control, window=plan.windows[1], most=100)
        names = (("anna", "anna"), ("ben", "ben"), ("anyone", None))
        self.consumers = [Consumer(name, client, self.broker, self.clock, self.checks) for name, client in names]
        for consumer in self.consumers:
            self.broker.session(consumer.name, consumer.wants, window=20, most=plan.most_queued[1])
        self.node: Node | None = None
        self.calm = False
        self._faults = Faults(self)
        self._starts = 0
        self._number = 0

    @staticmethod
    def _is_request(topic: str) -> bool:
        return topic.startswith((f"{BASE}/req", f"{BASE}/ask", f"{BASE}/session"))

    @staticmethod
    def _is_control(topic: str) -> bool:
        return topic.startswith(f"{BASE}/ctl/")

    # --- its course ---

    def run(self) -> None:
        """Let it happen.

        Raises:
            Broken: a promise was not kept.
        """
        try:
            self._begin()
            self.agenda.run(self.plan.span_s)
            self._calm_down()
            self._come_to_rest()
            self._recover()
            self._look_back()
        finally:
            self.disk.discard()

    def _begin(self) -> None:
        rng, plan = self.rng, self.plan
        self._start_node()
        for consumer in self.consumers:
            self._keep_online(consumer)
        for _ in range(plan.requests):
            self.agenda.after(rng.random() * plan.span_s, self._ask)
        for fault, rate in plan.rates.items():
            self._faults.plan(fault, rate)

    # --- the daemon ---

    def _start_node(self) -> None:
        if self.node is not None and not self.node.dead:
            return
        self._starts += 1
        Node(
            replace(self.plan.settings, boot=self._starts),
            self.agenda,
            self.clock,
            self.rng,
            self.checks,
            self.broker,
            self.disk,
            self._engine,
            window=self.plan.windows[0],
            on_death=self._restart_soon,
        )

    def _engine(self, node: Node) -> Engine:
        self.node = node
        return Engine(
            self.agenda,
            self.rng,
            self.checks,
            self.plan.scripts,
            parallel=self.plan.parallel,
            pace_s=self.plan.pace_s,
            post=lambda report: node.post(lambda: [report]),
            deadly=node.kill,
        )

    def _restart_soon(self) -> None:
        if self._faults.switch_off and self.node is not None and self.node.left:
            self._faults.power_cuts += not self.disk.is_clean
            self._faults.machine_goes_down()
        self._faults.switch_off = False
        self.agenda.after(0.05 + self.rng.random() * 2, self._start_node)

    # --- the consumers ---

    def _keep_online(self, consumer: Consumer) -> None:
        """Connect, and see to it now and then."""
        consumer.connect()
        self.agenda.after(0.3 + self.rng.random() * 0.4, lambda: self._keep_online(consumer))

    def _ask(self) -> None:
        rng = self.rng
        consumer = rng.choice(self.consumers)
        self._number += 1
        asked = self.plan.asked(self._number, rng, consumer.client, consumer.name)
        consumer.ask(asked)
        if asked.id is None:
            return
        if rng.random() < 0.15:
            self._later(lambda: consumer.ask(asked))
        if rng.random() < 0.05:
            self._later(lambda: self._rival(consumer, asked))
        if rng.random() < (0.3 if asked.script.stuck_at is not None else 0.12):
            self._later(lambda: self._control(consumer, asked, {"op": "cancel"}))
        if rng.random() < 0.12:
            self._later(lambda: self._control(consumer, asked, {"op": "pause"}))
            if rng.random() < 0.7:
                self._later(lambda: self._control(consumer, asked, {"op": "resume"}))
        if rng.random() < 0.15:
            first = rng.choice([0, 0, 1, 3])
            self._later(lambda: self._control(consumer, asked, {"op": "replay", "from_seq": first}))

    def _later(self, call: Callable[[], None]) -> None:
        self.agenda.after(self.rng.expovariate(1.0), call)

    @staticmethod
    def _control(consumer: Consumer, asked: Asked, op: dict[str, object]) -> None:
        assert asked.id is not None
        consumer.control(asked, asked.id, op)

    def _rival(self, consumer: Consumer, asked: Asked) -> None:
        """Another body under the same id."""
        self._number += 1
        rival = self.plan.asked(self._number, self.rng, asked.client, consumer.name)
        rival.id, rival.rival = asked.id, True
        topic = f"{BASE}/req/{asked.path}"
        body = {"prompt": rival.prompt}
        correlation = f"x{self._number}".encode()
        rival.message = Message(topic, json.dumps(body).encode(), None, correlation)
        rival.reply_topic, rival.max_tokens, rival.seed, rival.timeout_s = None, 40, None, None
        rival.only_final = False
        if rival.script.stuck_at is not None:
            self.plan.scripts[rival.prompt] = rival.script = replace(rival.script, stuck_at=None)
        consumer.ask(rival)

    # --- the end ---

    def _calm_down(self) -> None:
        """Nothing goes wrong any more, and everybody comes back."""
        self.checks.note("calm")
        self.calm = True
        self.broker.behaviour = Behaviour(delay_s=self.plan.behaviour.delay_s)
        self.broker.up = True
        self.disk.failing = False
        self.disk.full = bool(self.plan.rates["full"]) and self.rng.random() < 0.5
        if self.disk.full:  # it is the last to get better, so that nothing else happens then
            self.checks.reasons.add("unavailable")
            self.agenda.after(2 + self.rng.random() * 3, self._faults.disk_has_room)
        for session in self.broker.sessions.values():
            session.most = 100_000
        if self.node is None or self.node.dead:
            self._start_node()

    def _come_to_rest(self) -> None:
        """Without anybody doing anything, all requests that were recorded end, and the broker gets all of them."""
        end = self.clock.time + _CALM_S
        self._pass(6.0)
        while self.clock.time < end:
            self._cancel_stuck()  # a `cancel` is confirmed by the final, and until then may die with the daemon
            self._pass(5.0)
            if not self._unrest():
                break
        else:
            raise Broken(f"it does not come to rest: {self._unrest()}")
        self._is_whole()

    def _cancel_stuck(self) -> None:
        """Nothing ends these but a deadline, which not all have: so a `cancel` must."""
        self._tell_ids()
        for consumer in self.consumers:
            for asked in consumer.asked.values():
                if asked.script.stuck_at is not None and asked.timeout_s is None:
                    for name in asked.heard:
                        consumer.control(asked, name, {"op": "cancel"})

    def _tell_ids(self) -> None:
        """Consumers may have missed all of a reply under an id that the daemon made."""
        for _, client, name, correlation, _, _ in self.disk.requests():
            for consumer in self.consumers:
                asked = consumer.asked.get(correlation or b"")
                if asked is not None and asked.id is None and client is None:
                    consumer.know(asked, name)

    def _pass(self, seconds: float) -> None:
        self.agenda.run(self.clock.time + seconds)

    def _unrest(self) -> str:
        node = self.node
        if node is None or node.dead:
            return "no daemon runs"
        sessions = [self.broker.sessions[name] for name in ("edged-n", "edged-n-ctl")]
        if any(session.queue or session.under_way for session in sessions):
            return f"not acknowledged: {[(s.name, len(s.queue), list(s.under_way.values())) for s in sessions]}"
        if len(node.outbox):
            return f"{len(node.outbox)} messages in the outbox"
        if unended := [row for row in self.disk.requests() if not row[4] or not row[5]]:
            return f"requests that have not ended, or are not delivered: {unended}"
        parts = node.core._parts
        if parts.streams or parts.ending or parts.courier._deliveries or parts.courier.unconfirmed:
            return f"in memory: {list(parts.streams)}, {parts.courier._deliveries}, {parts.courier.unconfirmed}"
        return ""

    def _is_whole(self) -> None:
        """What has ended has reached the broker, every message of its last generation."""
        for uid, _, name, _, _, _ in self.disk.requests():
            self.checks.is_with_broker(uid, name)
            gen = self.disk.past(uid)[0]
            if gen > 1 + self._faults.power_cuts:
                raise Broken(f"{name} is in generation {gen} after {self._faults.power_cuts} power cuts")

    def _recover(self) -> None:
        """Consumers get all that was accepted by asking for what they miss, and the rest by asking again."""
        for _ in range(_ROUNDS):
            if not self._ask_again():
                return
            self._pass(_ROUND_S / 2)
            self._cancel_stuck()
            self._pass(_ROUND_S / 2)
        raise Broken(f"consumers never get all: {[(c.name, a.message, h) for c, a, h in self._incomplete()]}")

    def _ask_again(self) -> int:
        count = 0
        for consumer, asked, name in self._incomplete():
            count += 1
            consumer.want(asked, asked.heard[name])
        return count

    def _incomplete(self) -> list[tuple[Consumer, Asked, str]]:
        self._tell_ids()
        bodies = {(row[1], row[2]): row[3] for row in self.disk.requests()}
        found = []
        for consumer in self.consumers:
            for asked in consumer.asked.values():
                body = bodies.get((asked.client, asked.id or ""), asked.message.correlation)
                if asked.rival or body != asked.message.correlation:  # its id belongs to another one, which was faster
                    continue
                found += [(consumer, asked, name) for name, heard in asked.heard.items() if heard.result is None]
        return found

    def _look_back(self) -> None:
        """Nothing was executed twice; and what was said is still there, and is what it was."""
        for correlation, count in self.disk.count().items():
            if count > self.broker.taken[correlation]:
                raise Broken(f"{correlation!r} was executed {count} times, and came {self.broker.taken[correlation]}")
        rows = self.disk.requests()
        self.rng.shuffle(rows)
        for uid, _, _, correlation, _, _ in rows[:_REPLAYED]:
            for consumer in self.consumers:
                asked = consumer.asked.get(correlation or b"")
                if asked is not None:
                    consumer.replayed(asked, self.checks.recorded(uid))


def run(seed: int, *, trace: bool = False) -> World:
    """A world, run to its end.

    Raises:
        Broken: a promise was not kept.
    """
    world = World(seed, trace=trace)
    world.run()
    return world
