"""A core with a clock in the test's hand, and what it did."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter, deque
from dataclasses import replace
from typing import Any

from edged.core.brain import Core
from edged.core.events import (
    Acknowledge,
    BrokerConnected,
    Cancel,
    Delta,
    Effect,
    EngineLost,
    EngineReady,
    EngineStep,
    Event,
    Finished,
    Generate,
    Log,
    MessageArrived,
    Now,
    Publish,
    Published,
    Record,
    Synced,
    Tick,
    Written,
)
from edged.core.settings import CoreSettings, Defaults, ModelSettings
from edged.wire.assembly import Reassembler
from edged.wire.errors import ErrorCode
from edged.wire.messages import ModelCard
from edged.wire.topics import Topics
from tests.core.memory import Memory

DEFAULTS = Defaults(
    max_tokens=100,
    temperature=0.8,
    top_p=0.95,
    top_k=40,
    min_p=0.05,
    repeat_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)
SETTINGS = CoreSettings(
    topics=Topics("n"),
    version="1.2.3",
    boot=7,
    reply_topics=("reply/#", "edged/v1/n/reply/#"),
    max_queue=10,
    max_queue_per_client=5,
    max_payload=1000,
    max_tokens=1000,
    timeout_s=100.0,
    flush_s=0.04,
    flush_tokens=32,
    max_waiting=4,
    max_pause_s=300.0,
    keep_s=600,
    metrics_s=0.0,
    models=(ModelSettings("m", DEFAULTS),),
)


class World:
    """Feeds a core with events, writes what it records, and confirms what it publishes unless `confirms` is off.

    Args:
        ready: the models are loaded.
        parallel: requests at the same time in each of them.
        before: an earlier world, which is gone; its memory goes on.
        intact, same_boot: of what it left behind (`Restored`).
        changes: of the settings.
    """

    time: float
    start: float
    memory: Memory

    def __init__(
        self,
        *,
        ready: bool = True,
        parallel: int = 2,
        before: World | None = None,
        intact: bool = True,
        same_boot: bool = True,
        **changes: Any,
    ) -> None:
        self.time = 1000.0 if before is None else before.time if same_boot else 5.0
        self.start = 1_700_000_000.0 if before is None else before.start + before.time - self.time
        self.settings = replace(SETTINGS, **changes)
        self.memory = before.memory if before else Memory()
        self.core = Core(self.settings, self.now, random.Random(1), self.memory)
        self.confirms = True
        self.syncs = True
        self.effects: list[Effect] = []
        self._unconfirmed: deque[object] = deque()
        self._confirming = False
        self._acks = itertools.count()
        self._said: Counter[int] = Counter()
        self.perform(self.core.restore(self.memory.restored(intact=intact, same_boot=same_boot), self.now))
        self.tell(BrokerConnected())
        if ready:
            for model in self.settings.models:
                self.ready(model.alias, parallel)

    @property
    def now(self) -> Now:
        return Now(self.time, self.start + self.time)

    def tell(self, event: Event) -> list[Effect]:
        effects = self.core.handle(event, self.now)
        self.perform(effects)
        return effects

    def perform(self, effects: list[Effect]) -> None:
        """Do what the daemon would do."""
        for effect in effects:
            self.effects.append(effect)
            if isinstance(effect, Publish) and effect.token is not None:
                self._unconfirmed.append(effect.token)
            if isinstance(effect, Generate):
                self._said[effect.uid] = len(effect.generated)
            elif isinstance(effect, Record):
                self.tell(Written(effect.number, self.memory.write(effect.rows)))
                if effect.sync and self.syncs and self.memory.full is None:
                    self.tell(Synced(effect.number))
        if self.confirms and not self._confirming:
            self.confirm()

    def confirm(self) -> None:
        """The broker confirms everything, and what follows from that, too."""
        self._confirming = True
        while self._unconfirmed:
            self.tell(Published(self._unconfirmed.popleft()))
        self._confirming = False

    def wait(self, seconds: float) -> None:
        """Let time pass, waking the core when it wants to be woken."""
        end = self.time + seconds
        while (wake := self.core.wake_at()) is not None and wake <= end:
            self.time = max(self.time, wake)
            self.tell(Tick())
        self.time = end
        self.tell(Tick())

    def ready(self, model: str = "m", parallel: int = 2) -> None:
        self.tell(EngineReady(model, ModelCard(alias=model, file="f.gguf", context=4096, parallel=parallel)))

    def request(self, path: str = "r", payload: Any = "hello", *, kind: str = "req", **more: Any) -> int:
        """Publish a request; returns the number of its ack."""
        body = json.dumps(payload).encode() if isinstance(payload, dict) else payload.encode()
        ack = next(self._acks)
        topic = "/".join(filter(None, ("edged/v1/n", kind, path)))
        self.tell(MessageArrived(topic, body, ack=ack, **more))
        return ack

    def ctl(self, path: str, payload: str = "cancel") -> None:
        self.request(path, payload, kind="ctl")

    def say(self, uid: int, text: str, n: int = 1) -> None:
        """Text of a request, with `n` tokens behind it; the ids of its tokens are 0, 1, 2, …"""
        said = self._said[uid]
        self._said[uid] += n
        self.tell(EngineStep(self.model_of(uid), deltas=(Delta(uid, text, tuple(range(said, said + n))),)))

    def finish(self, uid: int, reason: str = "stop", **more: Any) -> None:
        self.tell(EngineStep(self.model_of(uid), finished=(Finished(uid, reason, **more),)))

    def lose(self, reason: str = "killed", *, error: ErrorCode | None = None, **more: Any) -> None:
        """The engine of the model `m` is gone."""
        self.tell(EngineLost("m", reason, error, **more))

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The fields of the log's lines of that name."""
        return [effect.fields for effect in self.effects if isinstance(effect, Log) and effect.event == event]

    def text(self, path: str = "r") -> str:
        """What a consumer makes of a reply: all of it, proven by its final."""
        reassembler = Reassembler()
        for published in self.published:
            if published.topic == f"edged/v1/n/reply/{path}":
                reassembler.feed(published.payload)
        assert reassembler.result is not None, f"the reply to {path!r} is not complete"
        assert not reassembler.result.healed
        assert reassembler.result.duplicates == 0
        return reassembler.result.text

    def model_of(self, uid: int) -> str:
        return next(e.model for e in self.generated if e.uid == uid)

    @property
    def generated(self) -> list[Generate]:
        """What the engines were given."""
        return [effect for effect in self.effects if isinstance(effect, Generate)]

    @property
    def cancelled(self) -> list[int]:
        """The uids that the engines were asked to cancel."""
        return [effect.uid for effect in self.effects if isinstance(effect, Cancel)]

    @property
    def acked(self) -> list[object]:
        """What was acknowledged, in order."""
        return [effect.ack for effect in self.effects if isinstance(effect, Acknowledge)]

    @property
    def published(self) -> list[Publish]:
        """All messages."""
        return [effect for effect in self.effects if isinstance(effect, Publish)]

    def on(self, topic: str) -> list[dict[str, Any]]:
        """The messages on a topic below the node's."""
        return [json.loads(p.payload) for p in self.published if p.topic == f"edged/v1/n/{topic}"]

    def reply(self, path: str = "r") -> list[dict[str, Any]]:
        """The messages of a reply."""
        return self.on(f"reply/{path}")

    def running(self, path: str) -> int:
        """The uid of the request whose prompt is its path."""
        return next(e.uid for e in self.generated if e.messages and e.messages[-1][1] == path)
