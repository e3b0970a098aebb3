"""A core with a clock in the test's hand, and what it did."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from typing import Any

from edged.core.brain import Core
from edged.core.events import (
    Acknowledge,
    BrokerConnected,
    Cancel,
    Delta,
    Effect,
    EngineReady,
    EngineStep,
    Event,
    Finished,
    Generate,
    MessageArrived,
    Now,
    Publish,
    Published,
    Tick,
)
from edged.core.settings import CoreSettings, Defaults, ModelSettings
from edged.wire.messages import ModelCard
from edged.wire.topics import Topics

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
    keep_s=600,
    metrics_s=0.0,
    models=(ModelSettings("m", DEFAULTS),),
)


class World:
    """Feeds a core with events, and confirms what it publishes unless `confirms` is off."""

    def __init__(self, *, ready: bool = True, parallel: int = 2, **changes: Any) -> None:
        self.time = 1000.0
        self.settings = replace(SETTINGS, **changes)
        self.core = Core(self.settings, self.now, random.Random(1))
        self.confirms = True
        self.effects: list[Effect] = []
        self._acks = itertools.count()
        self.tell(BrokerConnected())
        if ready:
            for model in self.settings.models:
                self.ready(model.alias, parallel)

    @property
    def now(self) -> Now:
        return Now(self.time, self.time + 1_700_000_000)

    def tell(self, event: Event) -> list[Effect]:
        effects = self.core.handle(event, self.now)
        self.effects += effects
        if self.confirms:
            for effect in effects:
                if isinstance(effect, Publish) and effect.token is not None:
                    self.tell(Published(effect.token))
        return effects

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
        self.tell(EngineStep(self.model_of(uid), deltas=(Delta(uid, text, n),)))

    def finish(self, uid: int, reason: str = "stop", **more: Any) -> None:
        self.tell(EngineStep(self.model_of(uid), finished=(Finished(uid, reason, **more),)))

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
