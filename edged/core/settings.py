"""What the core is told about the node once, at its start. The defaults stand in `edged.config` alone."""

from __future__ import annotations

from dataclasses import dataclass

from edged.wire.topics import Topics


@dataclass(frozen=True, slots=True)
class Defaults:
    """A model's parameters where a request names none. Names and meaning are the contract's."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    stop: tuple[str, ...] = ()
    system: str | None = None


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A configured model."""

    alias: str
    defaults: Defaults


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """The node's name, its bounds and its models.

    Attributes:
        boot: rises at every start.
        reply_topics: topic filters that a reply topic must match one of.
        max_queue: requests that may wait; `max_queue_per_client` of them from one client.
        max_payload: bytes of a request.
        max_tokens: the most that a request may ask for.
        timeout_s: the longest a request may take, queueing included, seconds.
        flush_s: how long text may wait for more text before it is published, seconds.
        flush_tokens: so many tokens are published without waiting.
        max_waiting: messages of one stream that the broker has not confirmed; beyond that its chunks grow.
        max_pause_s: a paused stream goes on by itself after so long, seconds.
        keep_s: how long an ended request is remembered, and the Message Expiry of replies, seconds.
        metrics_s: interval of the node's metrics, seconds; 0 = none.
        models: the first is the one that requests get which name none.
    """

    topics: Topics
    version: str
    boot: int
    reply_topics: tuple[str, ...]
    max_queue: int
    max_queue_per_client: int
    max_payload: int
    max_tokens: int
    timeout_s: float
    flush_s: float
    flush_tokens: int
    max_waiting: int
    max_pause_s: float
    keep_s: int
    metrics_s: float
    models: tuple[ModelSettings, ...]
