"""One request inside the engine: its tokens, how far they are computed, and what it has cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from edged.engine.text import TextStream


class State(Enum):
    """Where a sequence stands."""

    WAITING = auto()  #: has no place in the KV cache (yet, or again after a preemption)
    RUNNING = auto()
    FINISHED = auto()


class TokenSampler(Protocol):
    """Chooses tokens for one sequence."""

    def sample(self, context: int, index: int) -> int:
        """The next token, from the logits at `index` of the last batch."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(slots=True)
class Timing:
    """When things happened to a sequence; seconds of one monotonic clock."""

    first_step: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    gaps: list[float] = field(default_factory=list)
    batch_sizes: int = 0
    steps: int = 0

    def token(self, now: float, batch_size: int) -> None:
        """Note a token that was generated in a step with `batch_size` sequences."""
        if self.last_token is None:
            self.first_token = now
        else:
            self.gaps.append(now - self.last_token)
        self.last_token = now
        self.steps += 1
        self.batch_sizes += batch_size

    def metrics(self, *, prefilled: int, now: float) -> dict[str, float]:
        """The engine's share of the contract's metrics, by their names."""
        prefill_s = (self.first_token or now) - self.first_step if self.first_step is not None else 0.0
        generation_s = self.last_token - self.first_token if self.last_token and self.first_token else 0.0
        metrics = {
            "prefill_time_ms": prefill_s * 1000,
            "generation_time_ms": generation_s * 1000,
            # By the gaps: the token that ends an answer took its time, too, and is not counted as generated.
            "tokens_per_second": len(self.gaps) / generation_s if generation_s else 0.0,
            "prompt_tokens_per_second": prefilled / prefill_s if prefill_s else 0.0,
            "mean_batch_size": self.batch_sizes / self.steps if self.steps else 0.0,
        }
        if self.gaps:
            ordered = sorted(self.gaps)
            metrics["mean_itl_ms"] = sum(ordered) / len(ordered) * 1000
            metrics["p95_itl_ms"] = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))] * 1000
            metrics["max_itl_ms"] = ordered[-1] * 1000
        return {name: round(value, 3) for name, value in metrics.items()}


@dataclass(slots=True, eq=False)
class Sequence:
    """A request being generated.

    Attributes:
        tokens: the prompt, then what was generated.
        prompt_tokens: how many of them are the prompt.
        computed: how many of them are in the KV cache.
        slot: llama.cpp's sequence id while it is running.
        held_tokens: generated tokens whose text has not been given out yet.
        reached: the most tokens of the prompt that were ever computed, which a preemption does not take back.
    """

    uid: int
    tokens: list[int]
    max_tokens: int
    sampler: TokenSampler
    text: TextStream
    wants_progress: bool = False
    prompt_tokens: int = 0
    computed: int = 0
    slot: int = -1
    state: State = State.WAITING
    held_tokens: int = 0
    preemptions: int = 0
    reached: int = 0
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        """Count the prompt."""
        self.prompt_tokens = len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens still to be computed before the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def is_decoding(self) -> bool:
        """One token to compute, and it brings the next one."""
        return self.pending == 1
