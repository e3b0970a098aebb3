"""One request inside the engine: its tokens, how far they are computed, and what it has cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from edged.engine.prefix import Node
from edged.engine.text import TextStream


class TokenSampler(Protocol):
    """Chooses tokens for one sequence."""

    def sample(self, context: int, index: int) -> int:
        """The next token, from the logits at `index` of the last batch; -1 = its last logits."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(slots=True)
class Timing:
    """When things happened to a sequence; seconds of one monotonic clock, which stands still while it is held.

    Attributes:
        came: when it came to the engine.
        held_at: since when it is; None while it is not.
    """

    came: float | None = None
    first_step: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    gaps: list[float] = field(default_factory=list)
    batch_sizes: int = 0
    steps: int = 0
    held_at: float | None = None

    def begin(self, now: float) -> None:
        """Something is computed of it; only the first time counts."""
        if self.first_step is None:
            self.first_step = now

    def hold(self, now: float) -> None:
        """Stop the clock; a second time does nothing."""
        if self.held_at is None:
            self.held_at = now

    def release(self, now: float) -> None:
        """Let the clock go on: nothing that is measured contains the pause."""
        if self.held_at is None:
            return
        pause, self.held_at = now - self.held_at, None
        for name in ("came", "first_step", "first_token", "last_token"):
            at = getattr(self, name)
            if at is not None:
                setattr(self, name, at + pause)

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
        """The engine's share of the contract's metrics, by their names; and `waited_ms`, before `first_step`."""
        now = now if self.held_at is None else self.held_at
        begun = now if self.first_step is None else self.first_step
        prefill_s = (self.first_token or now) - begun
        generation_s = self.last_token - self.first_token if self.last_token and self.first_token else 0.0
        metrics = {
            "waited_ms": (begun - self.came) * 1000 if self.came is not None else 0.0,
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
        number: rises with every sequence that comes.
        slot: llama.cpp's sequence id while it is running; -1 while it has no place in the KV cache.
        owner: whose it is: what it leaves in the prefix cache serves that owner.
        shared: so many of its first tokens are the operator's words, which serve everybody there.
        exact: where it is alone, it comes out the same to the last digit, whatever the prefix cache had.
        held_tokens: generated tokens whose text has not been given out yet.
        reached: the most tokens of the prompt that were ever computed, which a preemption does not take back.
        cached_tokens: of the prompt, that it found in the prefix cache; None while it has not looked.
        node: where it stands in the prefix cache while it is running.
        kept: so many of its first cells belong to the prefix cache.
        together: so many of its first tokens lie together in the KV cache, more or less.
        reach: how many cells were in use at most while it was computed.
        is_silent: none of its text was given out yet.
        is_kept: what it had computed when its prompt was complete is in the prefix cache.
        pristine: how each computed token was computed; see `edged.engine.prefix.Node`.
        yields: it has passed others that wait for room, and gives its place up where that is enough for one of them.
        is_aside: its prompt is being computed in another context: it is in no step until that has ended.
        stays: it is not computed aside, for that could not be done.
        is_alone: nothing else has had cells since it began, but for what it took over, in their first cells.
    """

    uid: int
    tokens: list[int]
    max_tokens: int
    sampler: TokenSampler
    text: TextStream
    wants_progress: bool = False
    owner: str = ""
    shared: int = 0
    exact: bool = False
    prompt_tokens: int = 0
    computed: int = 0
    number: int = -1
    slot: int = -1
    held_tokens: list[int] = field(default_factory=list)
    preemptions: int = 0
    reached: int = 0
    cached_tokens: int | None = None
    node: Node | None = None
    kept: int = 0
    together: int = 0
    reach: int = 0
    is_kept: bool = False
    is_silent: bool = True
    pristine: bytearray = field(default_factory=bytearray)
    is_alone: bool = False
    yields: bool = False
    is_aside: bool = False
    stays: bool = False
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        """Count the prompt, where nobody has."""
        self.prompt_tokens = self.prompt_tokens or len(self.tokens)

    def stand_on(self, node: Node) -> None:
        """Its first cells are those of the prefix cache down to this node."""
        self.node, self.kept = node, node.end

    def leave(self) -> None:
        """It has no cells any more, and waits."""
        self.slot, self.computed = -1, 0
        self.node, self.kept, self.is_kept, self.together, self.reach = None, 0, False, 0, 0
        self.is_alone = self.is_aside = self.yields = False
        self.pristine.clear()

    @property
    def is_held(self) -> bool:
        """Nothing is to be computed for it for now."""
        return self.timing.held_at is not None

    @property
    def is_resting(self) -> bool:
        """It is in no step for now: it is held, or computed aside."""
        return self.is_held or self.is_aside

    @property
    def scattered(self) -> range:
        """Positions of tokens that came one at a time, and whose cells are its own: they lie between others'."""
        return range(max(self.together, self.kept), self.computed)

    @property
    def pending(self) -> int:
        """Tokens still to be computed before the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def left(self) -> int:
        """Tokens that may still be generated."""
        return self.max_tokens - self.generated

    @property
    def is_decoding(self) -> bool:
        """One token to compute, and it brings the next one."""
        return self.pending == 1
