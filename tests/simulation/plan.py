"""What a world is like: drawn from its seed, so that every world is bad in its own way and calm in the others."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from edged.core.settings import CoreSettings, Defaults, ModelSettings
from edged.wire.topics import Topics
from tests.simulation.broker import Behaviour, Message
from tests.simulation.consumer import BASE, Asked
from tests.simulation.disk import KEEP_S
from tests.simulation.engine import Script

#: What may go wrong, and how often in a second where it does, at most.
FAULTS = {
    "engine": 0.4,
    "load": 0.05,
    "kill": 0.5,
    "power": 0.25,
    "restart": 0.2,
    "cut": 0.5,
    "cut control": 0.4,
    "broker": 0.15,
    "forget": 0.08,
    "offline": 0.4,
    "full": 0.2,
    "failing": 0.15,
    "jump": 0.2,
}
#: Deadline where a request names none: far beyond the end of any world, seconds.
_TIMEOUT_S = 50_000.0
_MAX_TOKENS = 40
#: Of requests.
_SHARES = {"poison": 0.04, "stuck": 0.05, "ask": 0.2}


@dataclass(slots=True)
class Plan:
    """One world.

    Attributes:
        span_s: so long requests come.
        rates: of faults, in a second.
        requests: how many are asked.
        pace_s: a token takes so long, on average; `sync_s`: making something durable, at most.
        windows: messages under way: from the daemon, to the daemon.
    """

    span_s: float
    rates: dict[str, float]
    requests: int
    parallel: int
    pace_s: float
    sync_s: float
    windows: tuple[int, int]
    most_queued: tuple[int, int]
    behaviour: Behaviour
    settings: CoreSettings
    scripts: dict[str, Script] = field(default_factory=dict)

    @classmethod
    def draw(cls, rng: random.Random) -> Plan:
        """A world of its own kind."""
        rates = {name: rng.random() * most if rng.random() < 0.35 else 0.0 for name, most in FAULTS.items()}
        some = rng.random() < 0.4
        behaviour = Behaviour(
            delay_s=rng.choice([0.001, 0.01, 0.1]),
            full=rng.random() * 0.1 if some and rng.random() < 0.5 else 0.0,
            forbidden=0.01 if some and rng.random() < 0.3 else 0.0,
            unmatched=0.1 if rng.random() < 0.3 else 0.0,
            twice=0.1 if rng.random() < 0.4 else 0.0,
        )
        return cls(
            span_s=rng.uniform(2.0, 8.0),
            rates=rates,
            requests=rng.randint(5, 16),
            parallel=rng.randint(1, 4),
            sync_s=rng.choice([0.003, 0.03, 0.5]),
            pace_s=rng.choice([0.01, 0.03, 0.1]),
            windows=(rng.choice([1, 3, 20]), rng.choice([1, 3, 20])),
            most_queued=(rng.choice([3, 100]), rng.choice([5, 30, 1000])),
            behaviour=behaviour,
            settings=_settings(rng),
        )

    def asked(self, number: int, rng: random.Random, client: str | None, name: str) -> Asked:
        """The next request."""
        prompt = f"p{number}"
        script = self.scripts[prompt] = self._script(rng)
        stuck = script.stuck_at is not None
        only_final = rng.random() < _SHARES["ask"]
        max_tokens = rng.randint(1, _MAX_TOKENS) if rng.random() < 0.15 else _MAX_TOKENS
        timeout_s = rng.uniform(2, 20) if rng.random() < (0.6 if stuck else 0.1) else None
        seed = number if rng.random() < 0.3 else None
        id_ = None if client is None and rng.random() < 0.5 else f"r{number}"
        fields: dict[str, object] = {"prompt": prompt, "max_tokens": max_tokens}
        if timeout_s is not None:
            fields["timeout_s"] = timeout_s
        if seed is not None:
            fields["seed"] = seed
        if rng.random() < 0.2:
            fields["progress"] = True
        if rng.random() < 0.15:
            fields["include_text"] = False
        if rng.random() < 0.15:
            fields["priority"] = rng.choice(["low", "high"])
        kind = "req"
        if only_final and rng.random() < 0.5:
            kind = "ask"
        elif only_final:
            fields["stream"] = False
        path = "/".join(filter(None, (client, id_)))
        topic = f"{BASE}/{kind}/{path}" if path else f"{BASE}/{kind}"
        response_topic = f"reply/{name}/{number}" if rng.random() < 0.15 else None
        message = Message(topic, json.dumps(fields).encode(), response_topic, f"c{number}".encode())
        return Asked(
            client, id_, message, response_topic, prompt, script, max_tokens, seed, timeout_s, only_final=only_final
        )

    @staticmethod
    def _script(rng: random.Random) -> Script:
        length = rng.randint(1, 10) if rng.random() < 0.5 else rng.randint(5, _MAX_TOKENS)
        dice = rng.random()
        if dice < _SHARES["poison"]:
            return Script(length, rng.randrange(length), outside=rng.random() < 0.5, deep=rng.random() < 0.3)
        if dice < _SHARES["poison"] + _SHARES["stuck"]:
            return Script(length, stuck_at=rng.randrange(length))
        return Script(length)


def _settings(rng: random.Random) -> CoreSettings:
    defaults = Defaults(
        max_tokens=_MAX_TOKENS,
        temperature=0.8,
        top_p=0.95,
        top_k=40,
        min_p=0.05,
        repeat_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
    )
    queue = rng.choice([2, 6, 50])
    return CoreSettings(
        topics=Topics("n"),
        version="1",
        boot=1,
        reply_topics=("reply/#", f"{BASE}/reply/#"),
        max_queue=queue,
        max_queue_per_client=max(1, queue // 2),
        max_payload=2000,
        max_tokens=_MAX_TOKENS,
        timeout_s=_TIMEOUT_S,
        flush_s=rng.choice([0.02, 0.1]),
        flush_tokens=rng.choice([2, 8]),
        max_waiting=rng.choice([2, 4, 16]),
        max_pause_s=5.0,
        keep_s=int(KEEP_S),
        metrics_s=0,
        models=(ModelSettings("m", defaults),),
    )
