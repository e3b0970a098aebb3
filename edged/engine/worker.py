"""The child process: one model, one loop. `admit → build batch → decode → sample → report`, one step a turn.

Started by `edged.engine.process` with one end of a socket pair; it ends when that is closed. Imports neither pydantic
nor anything of MQTT, to stay small.
"""

from __future__ import annotations

import ctypes
import select
import signal
import socket
import sys
import time
from pathlib import Path

from edged.engine.batch import Batch
from edged.engine.cores import usable_cores
from edged.engine.files import digest
from edged.engine.model import BATCH_TOKENS, NO_ROOM, DecodeError, LogTap, Model, ModelError
from edged.engine.protocol import (
    Cancel,
    Decoder,
    Failed,
    Finished,
    Generate,
    Load,
    Loading,
    Note,
    Order,
    Ready,
    Report,
    Step,
    encode,
)
from edged.engine.sampling import Sampler, SamplingParams
from edged.engine.scheduler import Scheduler, Slice
from edged.engine.sequence import Sequence
from edged.engine.template import ChatTemplate, PromptError
from edged.engine.text import TextStream

#: Least change of the load's progress that is reported.
_LOADING_STEP = 0.05
#: prctl(2): the signal that this process gets when the thread that started it ends.
_PR_SET_PDEATHSIG = 1


class Channel:
    """The child's end of the socket to the daemon."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = Decoder()

    def send(self, report: Report) -> None:
        """Hand a report over; waits while the daemon does not read."""
        self._socket.sendall(encode(report))

    def orders(self, *, wait: bool) -> list[Order] | None:
        """The orders that have come; None when the daemon is gone. With `wait`, at least one."""
        orders: list[Order] = []
        while True:
            ready, _, _ = select.select([self._socket], [], [], None if wait and not orders else 0)
            if not ready:
                return orders
            data = self._socket.recv(1 << 16)
            if not data:
                return None
            orders += [m for m in self._decoder.feed(data) if isinstance(m, Load | Generate | Cancel)]


class Worker:
    """Generates for all the requests of one model together."""

    def __init__(self, channel: Channel, model: Model, *, itl_target_s: float) -> None:
        self._channel = channel
        self._model = model
        self._template = ChatTemplate(model.chat_template, model.vocabulary)
        self._batch = Batch(BATCH_TOKENS)
        self._scheduler = Scheduler(
            cells=model.context, slots=model.parallel, batch=BATCH_TOKENS, itl_target_s=itl_target_s
        )
        self._report = Step()

    def run(self) -> None:
        """Serve until the daemon closes the socket."""
        while (orders := self._channel.orders(wait=self._scheduler.idle)) is not None:
            for order in orders:
                self._obey(order)
            if slices := self._scheduler.plan():
                self._step(slices)
            if self._report:
                report, self._report = self._report, Step()
                self._channel.send(report)

    def _obey(self, order: Order) -> None:
        if isinstance(order, Generate):
            self._admit(order)
        elif isinstance(order, Cancel) and (sequence := self._scheduler.find(order.uid)):
            self._finish(sequence, "cancelled")

    def _admit(self, order: Generate) -> None:
        try:
            tokens = self._tokens(order)
        except PromptError as error:
            self._report.finished.append(Finished(order.uid, "error", error="bad_request", message=str(error)))
            return
        limit = self._model.context
        if not tokens:
            message = "the prompt has no tokens: send some text"
            self._report.finished.append(Finished(order.uid, "error", error="bad_request", message=message))
            return
        if len(tokens) >= limit:
            message = (
                f"the prompt has {len(tokens)} tokens; the model's context holds {limit}, "
                "and at least one has to be left for the answer"
            )
            self._report.finished.append(
                Finished(order.uid, "error", prompt_tokens=len(tokens), error="context_overflow", message=message)
            )
            return
        params = SamplingParams(
            temperature=order.temperature,
            top_p=order.top_p,
            top_k=order.top_k,
            min_p=order.min_p,
            seed=order.seed,
            repeat_penalty=order.repeat_penalty,
            presence_penalty=order.presence_penalty,
            frequency_penalty=order.frequency_penalty,
        )
        sampler = Sampler(params, self._model.vocabulary.size)
        sampler.prime(tokens)
        self._scheduler.add(
            Sequence(
                uid=order.uid,
                tokens=tokens,
                max_tokens=order.max_tokens,
                sampler=sampler,
                text=TextStream(tuple(order.stop)),
                wants_progress=order.progress,
            )
        )

    def _tokens(self, order: Generate) -> list[int]:
        if order.messages is None:
            return self._template.raw(order.prompt or "")
        return self._template.tokenize([(role, content) for role, content in order.messages])

    def _step(self, slices: list[Slice]) -> None:
        for slot in self._scheduler.take_preempted():
            self._model.forget(slot)
        outputs = self._fill(slices)
        decoding = sum(1 for s in slices if s.count == 1 and s.sequence.generated)
        started = time.monotonic()
        try:
            self._model.decode(self._batch.raw)
        except DecodeError as error:
            self._survive(slices, error)
            return
        sampled = [(s, s.sampler.sample(self._model.context_pointer, index)) for s, index in outputs]
        now = time.monotonic()
        for piece in slices:
            self._advance(piece, started)
        for sequence, token in sampled:
            sequence.timing.token(now, len(sampled))
            self._accept(sequence, token)
        self._scheduler.costs.learn(decoding=decoding, prefill=self._batch.size - decoding, seconds=now - started)

    def _fill(self, slices: list[Slice]) -> list[tuple[Sequence, int]]:
        """Fill the batch; returns the sequences that get a token, with the index of their logits."""
        self._batch.clear()
        outputs = []
        for piece in slices:
            sequence, start = piece.sequence, piece.sequence.computed
            tokens = sequence.tokens[start : start + piece.count]
            index = self._batch.add(tokens, start, sequence.slot, logits=piece.completes)
            if piece.completes:
                outputs.append((sequence, index))
        return outputs

    def _advance(self, piece: Slice, started: float) -> None:
        sequence = piece.sequence
        sequence.computed += piece.count
        if sequence.timing.first_step is None:
            sequence.timing.first_step = started
        done = min(sequence.computed, sequence.prompt_tokens)
        if sequence.wants_progress and done > sequence.reached:
            self._report.prefill.append((sequence.uid, done, sequence.prompt_tokens))
        sequence.reached = max(sequence.reached, done)

    def _accept(self, sequence: Sequence, token: int) -> None:
        """Take a sampled token: its text goes out, or the sequence ends."""
        if self._model.vocabulary.is_end(token):
            self._finish(sequence, "stop")
            return
        sequence.tokens.append(token)
        sequence.held_tokens += 1
        self._say(sequence, sequence.text.push(self._model.vocabulary.piece(token)))
        if sequence.text.stopped:
            self._finish(sequence, "stop")
        elif sequence.generated >= sequence.max_tokens or not self._scheduler.has_room(sequence):
            self._finish(sequence, "length")

    def _say(self, sequence: Sequence, text: str) -> None:
        if text:
            self._report.deltas.append((sequence.uid, text, sequence.held_tokens))
            sequence.held_tokens = 0

    def _finish(self, sequence: Sequence, reason: str, message: str = "") -> None:
        self._say(sequence, sequence.text.end())
        slot = self._scheduler.remove(sequence)
        if slot >= 0:
            self._model.forget(slot)
        sequence.sampler.close()
        timings = sequence.timing.metrics(prefilled=sequence.reached, now=time.monotonic())
        self._report.finished.append(
            Finished(
                sequence.uid,
                reason,
                prompt_tokens=sequence.prompt_tokens,
                completion_tokens=sequence.generated,
                timings={**timings, "preemptions": sequence.preemptions},
                error="internal" if reason == "error" else "",
                message=message,
            )
        )

    def _survive(self, slices: list[Slice], error: DecodeError) -> None:
        """Make room where the cache was full; else end what was in the batch. Whoever was not in it goes on."""
        if error.code == NO_ROOM and self._scheduler.preempt_youngest():
            return
        self._channel.send(Note("error", f"{error} with {self._batch.size} tokens of {len(slices)} sequences"))
        for piece in slices:
            self._finish(piece.sequence, "error", f"llama.cpp could not compute this step ({error}); try again")


def serve(channel: Channel) -> int:
    """Load the model that the first order names, and generate until the daemon is gone. Returns the exit code."""
    orders = channel.orders(wait=True)
    if not orders or not isinstance(orders[0], Load):
        return 1
    load, reported = orders[0], -1.0

    def progress(fraction: float) -> None:
        nonlocal reported
        if fraction >= reported + _LOADING_STEP:
            reported = fraction
            channel.send(Loading(round(fraction, 3)))

    log = LogTap(lambda level, text: channel.send(Note(level, text)))
    try:
        model = Model(
            Path(load.path),
            context=load.context,
            parallel=load.parallel,
            threads=load.threads or usable_cores(),
            gpu_layers=load.gpu_layers,
            on_progress=progress,
            log=log,
        )
        worker = Worker(channel, model, itl_target_s=load.itl_target_ms / 1000)
    except (ModelError, PromptError) as error:
        channel.send(Failed(str(error)))
        return 1
    channel.send(
        Ready(
            context=model.context,
            parallel=model.parallel,
            threads=model.threads,
            parameters=model.parameters,
            quantisation=model.quantisation,
            digest=load.digest or digest(Path(load.path)),
        )
    )
    worker.run()
    model.close()
    return 0


def main(argv: list[str]) -> int:
    """Entry point of the child; its argument is the number of the inherited socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is the daemon's to handle
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with socket.socket(fileno=int(argv[1])) as sock:
        try:
            return serve(Channel(sock))
        except (BrokenPipeError, ConnectionResetError):
            return 0  # the daemon is gone, and nobody is left to tell


if __name__ == "__main__":
    sys.exit(main(sys.argv))
