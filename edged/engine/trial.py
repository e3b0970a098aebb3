"""A trial's child process: does one thing with a model file, tells how it went, and ends.

`python -m edged.engine.trial` reads its order as JSON from standard input, and writes a line of JSON for each step that
is done, `{"step": "…"}`, and at last `{"result": {…}}` or `{"failed": "why"}`. It is a process of its own because
llama.cpp ends the process on what it does not like, and gives memory back only then.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import llama_cpp as llama

from edged.engine.batch import Batch
from edged.engine.child import belong_to_parent
from edged.engine.context import DecodeError
from edged.engine.cores import usable_cores
from edged.engine.model import LogTap, Model, ModelError
from edged.engine.perplexity import perplexity
from edged.engine.protocol import Load
from edged.engine.requantise import RequantiseError, requantise, types

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Work:
    """What is measured.

    Attributes:
        text: what the prompts are cut from.
        prompt: tokens of the prompt whose prefill is timed.
        depth: tokens of context that a sequence has before its decoding is timed.
        steps: tokens that are decoded of each sequence.
        streams: sequences that are decoded at the same time; one alone is timed besides.
    """

    text: str
    prompt: int
    depth: int
    steps: int
    streams: int


class _Track:
    """Sequences that read on in the text, as fast as the model can. No token is sampled: that costs the same always."""

    def __init__(self, model: Model, text: str) -> None:
        self._model = model
        self._batch = Batch(model.context.batch)
        self._tokens = model.vocabulary.tokenize(text) or [0]
        self._reached: dict[int, int] = {}

    def read(self, sequence: int, count: int) -> float:
        """Prefill so many tokens of a sequence; returns the seconds that it took."""
        began = time.perf_counter()
        for start in range(0, count, self._batch.capacity):
            size = min(self._batch.capacity, count - start)
            self._batch.clear()
            self._add(sequence, size, logits=start + size == count)
            self._compute()
        return time.perf_counter() - began

    def decode(self, sequences: int, steps: int) -> float:
        """Decode so many steps of the first sequences together; returns the seconds that it took."""
        began = time.perf_counter()
        for _ in range(steps):
            self._batch.clear()
            for sequence in range(sequences):
                self._add(sequence, 1, logits=True)
            self._compute()
        return time.perf_counter() - began

    def forget(self, *sequences: int) -> None:
        """Begin these anew."""
        for sequence in sequences:
            self._model.context.drop(sequence)
            self._reached.pop(sequence, None)

    def close(self) -> None:
        """Give the batch back."""
        self._batch.close()

    def _add(self, sequence: int, count: int, *, logits: bool) -> None:
        position = self._reached.get(sequence, 0)
        # each sequence begins elsewhere in the text, and the text begins anew where it ends
        begin = position + 97 * sequence
        tokens = [self._tokens[(begin + i) % len(self._tokens)] for i in range(count)]
        self._batch.add(tokens, position, sequence, logits=logits)
        self._reached[sequence] = position + count

    def _compute(self) -> None:
        self._model.context.decode(self._batch.raw)
        llama.llama_synchronize(self._model.context.pointer)


def speed(load: Load, work: Work, tell: Tell) -> dict[str, Any]:
    """Load a model as the engine does, and time it once.

    Returns:
        `prefill`, `decode_one` and `decode_many`, tokens per second (the last of all `streams` together); `streams`;
        `memory`, the most that the process held, bytes; `parameters` of the model; and `types` to requantise to.

    Raises:
        ModelError: it cannot be loaded.
        DecodeError: it cannot be computed.
    """
    log = LogTap(lambda _level, _text: None)  # has to live as long as the model
    model = Model(load, on_progress=_in_tenths(tell), log=log)
    track = _Track(model, work.text)
    # in a small context everything gets shorter
    streams = max(1, min(work.streams, model.parallel, model.context.cells // 8))
    share = model.context.cells // streams
    steps = max(1, min(work.steps, share // 3))
    depth = max(1, min(work.depth, share - 2 * steps))
    prompt = min(work.prompt, model.context.cells)
    track.read(0, 1)  # the first use of the weights may have to read them from the disk
    track.forget(0)
    tell("warm")
    prefill = prompt / track.read(0, prompt)
    tell("prefill")
    track.forget(0)
    for sequence in range(streams):
        track.read(sequence, depth)
        tell("filled")
    decode_many = streams * steps / track.decode(streams, steps)
    tell("decode")
    track.forget(*range(1, streams))
    decode_one = steps / track.decode(1, steps) if streams > 1 else decode_many
    result = {
        "prefill": prefill,
        "decode_one": decode_one,
        "decode_many": decode_many,
        "streams": streams,
        "memory": _peak(),
        "parameters": model.parameters,
        "types": types(),
    }
    track.close()
    model.close()
    return result


def _in_tenths(tell: Tell) -> Callable[[float], None]:
    """Tell of loading a tenth at a time: llama.cpp calls for every tensor."""
    told = 0

    def progress(fraction: float) -> None:
        nonlocal told
        if int(fraction * 10) > told:
            told = int(fraction * 10)
            tell("loading")

    return progress


def _peak() -> int:
    """The most memory that this process has held, bytes. Not getrusage, which counts what was before exec as well."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _act(order: dict[str, Any], tell: Tell) -> dict[str, Any]:
    if order["op"] == "speed":
        return speed(Load(**order["load"]), Work(**order["work"]), tell)
    if order["op"] == "perplexity":
        load = Load(**order["load"])
        value = perplexity(
            Path(load.path),
            order["text"],
            threads=load.threads or usable_cores(),
            gpu_layers=load.gpu_layers,
            most_windows=order["windows"],
            on_window=lambda done, of: tell(f"window {done} of {of}"),
            log=LogTap(lambda _level, _text: None),
        )
        return {"perplexity": value}
    source, target = Path(order["source"]), Path(order["target"])
    requantise(source, target, order["type"], threads=order["threads"], on_tensor=lambda: tell("tensor"))
    return {}


def serve(order: dict[str, Any], answers: TextIO) -> int:
    """Do what the order says and write the answers. Returns the exit code."""

    def say(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        result = _act(order, lambda step: say(step=step))
    except (ModelError, RequantiseError) as error:
        say(failed=str(error))
    except DecodeError as error:
        say(failed=f"llama.cpp could not compute it: {error}")
    else:
        say(result=result)
        return 0
    return 1


def main() -> int:
    """Entry point of the child."""
    belong_to_parent()
    order = json.load(sys.stdin)
    # whatever a library prints must not come between the answers
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        return serve(order, answers)


if __name__ == "__main__":
    sys.exit(main())
