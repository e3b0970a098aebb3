"""What is asked of both sides, the node and the bare loop: the same model, settings, prompts and lengths."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any

from edged import wiring
from edged.config import Settings
from edged.engine.cores import usable_cores
from edged.engine.files import resolve

#: So many four-digit numbers make a prompt: about 60 tokens for a tokenizer that takes digits one by one.
_NUMBERS = 10
#: Tokens of a number with its comma and blank, for such a tokenizer.
_NUMBER_TOKENS = 6


def numbers(tokens: int) -> int:
    """How many numbers make a prompt of about so many tokens."""
    return max(1, round(tokens / _NUMBER_TOKENS))


@dataclass(frozen=True, slots=True)
class Load:
    """`streams` clients with one request each, all at once; with `turnover_s` each asks again when its answer ended.

    Attributes:
        tokens: of each answer, exactly.
        seed: where prompts and the requests' seeds come from.
        turnover_s: for so long after the start an ended request is followed by another, seconds; 0 = not at all.
        numbers: of a prompt.
    """

    streams: int
    tokens: int
    seed: int
    turnover_s: float = 0.0
    numbers: int = _NUMBERS

    def prompt(self, stream: int, turn: int = 0) -> str:
        """The text of a client's request number `turn`, to be completed without a chat template.

        A row of numbers has no end, so the answer is as long as it may be and every measurement does the same work:
        MQTT requests cannot tell the model to pass over its end-of-text token. The rows are of one length, and no two
        begin alike, so that no prefix of one can be computed for another.
        """
        source = random.Random(f"{self.seed} {stream} {turn}")  # noqa: S311 - not for secrets
        row = ", ".join(str(source.randrange(1000, 10_000)) for _ in range(self.numbers))
        return f"{row},"

    def sampler_seed(self, stream: int, turn: int = 0) -> int:
        """The seed of the request's sampler."""
        return (self.seed * 1_000_003 + stream * 1009 + turn) % 2**31


@dataclass(frozen=True, slots=True)
class Setup:
    """What the daemon loads, as `edged.engine.protocol.Load`, and how it samples where a request says nothing."""

    load: dict[str, Any]
    sampling: dict[str, Any]

    @classmethod
    def of(cls, settings: Settings) -> Setup:
        """From the daemon's configuration; its first model.

        Raises:
            ModelNotFound: there is no such file.
        """
        names = {"temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
        model = settings.models[0]
        load = wiring.load(model, resolve(model.path), settings)
        return cls(
            load=asdict(replace(load, threads=load.threads or usable_cores())),
            sampling=model.defaults.model_dump(include=names),
        )
