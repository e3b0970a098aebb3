"""The limit: llama.cpp and the samplers in a bare loop, without scheduler, text, pipes, daemon or broker.

Model, context, batch and samplers are edged's own classes with the daemon's own settings, so that both sides compute
the same with the same: what is left of the difference is what serving costs. A child process of `serving.py`; it reads
a `Setup` and then one `Load` a line from its standard input and answers each with a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass

from benchmarks.load import Load, Setup
from edged.engine import protocol
from edged.engine.batch import Batch
from edged.engine.model import LogTap, Model
from edged.engine.sampling import Sampler, SamplingParams
from edged.engine.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class BareRun:
    """What happened when, seconds of the machine's monotonic clock.

    Attributes:
        started: before the first prompt was computed.
        marks: when every sequence had its first token, its second one, …
        prompt_tokens: of all prompts together.
    """

    started: float
    marks: list[float]
    prompt_tokens: int


@dataclass(slots=True)
class _Sequence:
    slot: int
    sampler: Sampler
    position: int = 0
    token: int = 0


class Loop:
    """Generates for all sequences together, and for nobody."""

    def __init__(self, setup: Setup, log: LogTap) -> None:
        self._model = Model(protocol.Load(**setup.load), on_progress=lambda _fraction: None, log=log)
        self._template = ChatTemplate(self._model.chat_template, self._model.vocabulary)
        self._sampling = setup.sampling
        self._batch = Batch(self._model.context.batch)

    def run(self, load: Load) -> BareRun:
        """Compute all prompts in full batches, then a token of every sequence in each step, past any end of text."""
        prompts = [self._template.raw(load.prompt(stream)) for stream in range(load.streams)]
        sequences = [_Sequence(slot, self._sampler(load.sampler_seed(slot))) for slot in range(load.streams)]
        started = time.monotonic()
        self._prefill(sequences, prompts)
        marks = [time.monotonic()]
        for _ in range(load.tokens - 1):
            self._step(sequences)
            marks.append(time.monotonic())
        for sequence in sequences:
            sequence.sampler.close()
            self._model.context.drop(sequence.slot)
        return BareRun(started, marks, sum(map(len, prompts)))

    def _sampler(self, seed: int) -> Sampler:
        return Sampler(SamplingParams(seed=seed, **self._sampling), self._model.vocabulary.size)

    def _prefill(self, sequences: list[_Sequence], prompts: list[list[int]]) -> None:
        self._batch.clear()
        complete: list[tuple[_Sequence, int]] = []
        for sequence, prompt in zip(sequences, prompts, strict=True):
            while sequence.position < len(prompt):
                room = self._batch.capacity - self._batch.size
                piece = prompt[sequence.position : sequence.position + room]
                ends = sequence.position + len(piece) == len(prompt)
                index = self._batch.add(piece, sequence.position, sequence.slot, logits=ends)
                sequence.position += len(piece)
                if ends:
                    complete.append((sequence, index))
                if self._batch.size == self._batch.capacity:
                    self._compute(complete)
        if self._batch.size:
            self._compute(complete)

    def _step(self, sequences: list[_Sequence]) -> None:
        outputs = []
        for sequence in sequences:
            outputs.append((sequence, self._batch.add([sequence.token], sequence.position, sequence.slot, logits=True)))
            sequence.position += 1
        self._compute(outputs)

    def _compute(self, outputs: list[tuple[_Sequence, int]]) -> None:
        """Decode the batch, sample where there are logits, and begin a new batch."""
        self._model.context.decode(self._batch.raw)
        for sequence, index in outputs:
            sequence.token = sequence.sampler.sample(self._model.context.pointer, index)
        outputs.clear()
        self._batch.clear()

    def close(self) -> None:
        """Free everything."""
        self._batch.close()
        self._model.close()


def main() -> None:
    log = LogTap(lambda level, text: print(f"{level}: {text}", file=sys.stderr) if level == "error" else None)
    loop = Loop(Setup(**json.loads(sys.stdin.readline())), log)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(loop.run(Load(**json.loads(line))))), flush=True)
    loop.close()


if __name__ == "__main__":
    main()
