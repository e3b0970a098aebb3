"""What is asked of both sides, the node and the bare loop: the same model, settings, prompts and lengths."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from edged.config.settings import Model
from edged.engine.cores import usable_cores
from edged.engine.files import resolve

#: So many four-digit numbers make a prompt: about 60 tokens for a tokenizer that takes digits one by one.
_NUMBERS = 10


@dataclass(frozen=True, slots=True)
class Load:
    """`streams` clients with one request each, all at once; with `turnover_s` each asks again when its answer ended.

    Attributes:
        tokens: of each answer, exactly.
        seed: where prompts and the requests' seeds come from.
        turnover_s: for so long after the start an ended request is followed by another, seconds; 0 = not at all.
    """

    streams: int
    tokens: int
    seed: int
    turnover_s: float = 0.0

    def prompt(self, stream: int, turn: int = 0) -> str:
        """The text of a client's request number `turn`, to be completed without a chat template.

        A row of numbers has no end, so the answer is as long as it may be and every measurement does the same work:
        MQTT requests cannot tell the model to pass over its end-of-text token. The rows are of one length, and no two
        begin alike, so that no prefix of one can be computed for another.
        """
        numbers = random.Random(f"{self.seed} {stream} {turn}")  # noqa: S311 - not for secrets
        row = ", ".join(str(numbers.randrange(1000, 10_000)) for _ in range(_NUMBERS))
        return f"{row},"

    def sampler_seed(self, stream: int, turn: int = 0) -> int:
        """The seed of the request's sampler."""
        return (self.seed * 1_000_003 + stream * 1009 + turn) % 2**31


@dataclass(frozen=True, slots=True)
class Setup:
    """The daemon's settings of its first model, and the parameters that it samples with where a request names none."""

    path: str
    context: int
    parallel: int
    threads: int
    gpu_layers: int
    sampling: dict[str, Any]

    @classmethod
    def of(cls, model: Model) -> Setup:
        """From the daemon's configuration.

        Raises:
            ModelNotFound: there is no such file.
        """
        names = {"temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
        return cls(
            path=str(resolve(model.path)),
            context=model.context,
            parallel=model.parallel,
            threads=model.threads or usable_cores(),
            gpu_layers=model.gpu_layers,
            sampling=model.defaults.model_dump(include=names),
        )
