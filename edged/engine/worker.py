"""The child process: one model, one loop. `admit → build batch → decode → sample → report`, one step a turn.

Started by `edged.engine.process` with one end of a socket pair and a shared page; it ends when the socket is closed.
Imports neither pydantic nor anything of MQTT, to stay small.
"""

from __future__ import annotations

import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

from edged.engine.batch import Batch
from edged.engine.channel import Channel
from edged.engine.child import belong_to_parent
from edged.engine.context import ABORTED, NO_ROOM, Context, DecodeError
from edged.engine.defrag import Defragmenter
from edged.engine.files import digest
from edged.engine.mapping import let_go, share
from edged.engine.memory import shortage
from edged.engine.model import LogTap, Model, ModelError, offloads
from edged.engine.prefiller import Prefiller
from edged.engine.prefix import PrefixCache
from edged.engine.protocol import Cancel, Failed, Finished, Generate, Hold, Load, Loading, Note, Order, Ready, Release
from edged.engine.pulse import Pulse
from edged.engine.reader import OrderError, Reader
from edged.engine.scheduler import Scheduler, Slice
from edged.engine.sequence import Sequence
from edged.engine.template import PromptError
from edged.engine.threads import Threads
from edged.engine.unsent import Unsent
from edged.heap import keep_less_than

#: What is freed in pieces of so many bytes is not kept: contexts come and go. No token needs as much anew.
_LARGE = 1024 * 1024
#: Least change of the load's progress that is reported.
_LOADING_STEP = 0.05
#: Tokens of the prompt by which the model is tried when it is loaded.
_TRIAL_TOKENS = 32
#: Where a smaller part of the file was needed for that, llama.cpp has made layouts of its own of the rest.
_ALL = 0.75


class Worker:
    """Generates for all the requests of one model together."""

    def __init__(self, channel: Channel, model: Model, pulse: Pulse, load: Load) -> None:
        self._channel = channel
        self._model = model
        self._pulse = pulse
        self._reader = Reader(model)
        self._context = model.context
        self._batch = Batch(self._context.batch)
        self._scheduler = Scheduler(
            self._context,
            PrefixCache(self._context, range(model.parallel, model.sequences), self._context.cells),
            cells=self._context.cells,
            slots=model.parallel,
            batch=self._context.batch,
            ubatch=model.ubatch,
            itl_target_s=load.itl_target_ms / 1000,
        )
        self._threads = Threads(model.threads, fixed=not load.yield_threads)
        self._prefiller = Prefiller(
            model,
            self._scheduler,
            self._threads,
            on_progress=self._progress,
            on_logits=self._begin_answer,
            on_block=self._advance,
            on_trouble=lambda sentence: channel.send(Note("warning", sentence)),
        )
        self._defragmenter = Defragmenter(self._context, self._scheduler) if model.allows_moves else None
        self._unsent = Unsent(load.hold_ms / 1000)
        self._file = Path(load.path)
        self._is_repacked = False
        self._is_rested = False
        self._step_s = 0.0
        self._is_aborted = False

    def try_out(self) -> None:
        """Compute something, so that all of the model has been read and the costs of a step are known.

        Raises:
            DecodeError: the model cannot be computed.
        """
        size = self._model.vocabulary.size
        for tokens in ([n % size for n in range(min(_TRIAL_TOKENS, self._context.cells // 2))], [0], [0]):
            self._batch.clear()
            self._batch.add(tokens, 0, 0, logits=True)
            seconds = self._compute(None)
            decoding = int(len(tokens) == 1)
            self._scheduler.costs.learn(decoding=decoding, prefill=len(tokens) - decoding, seconds=seconds)
            self._prefiller.weigh(0, len(tokens))
            self._context.drop(0)
        self._is_repacked = share(self._file) < _ALL

    def run(self) -> None:
        """Serve until the daemon closes the socket."""
        try:
            while True:
                self._prefiller.tend()  # right before waiting, for what it computes aside may wait for this, too
                self._report(self._step_s)
                orders = self._orders()
                if orders is None:
                    return
                for order in orders:
                    self._obey(order)
                if slices := self._scheduler.plan():
                    self._step(slices)
                self._report(0.0 if self._scheduler.idle else self._step_s)
                if self._defragmenter is not None:
                    self._defragmenter.tend()
        finally:
            self._prefiller.close()

    def _report(self, step_s: float) -> None:
        """Send what cannot wait for another step, which takes so long; 0 = there will be none, seconds."""
        now = time.monotonic()
        if self._unsent.due(now, step_s):
            self._channel.send(self._unsent.take(now))

    def _orders(self) -> list[Order] | None:
        """The orders that have come; waits where there is nothing else to do. None when the daemon is gone."""
        self._pulse.calm()
        event = self._prefiller.event(time.monotonic())
        if event is None:
            if self._scheduler.idle:
                self._rest()
            return self._channel.orders(wait=self._scheduler.idle)
        self._pulse.begin(self._prefiller.expected_s)
        self._channel.wait(event)
        self._pulse.end()
        return self._channel.orders(wait=False)

    def _rest(self) -> None:
        """Let go of the file's pages, of which little is needed where weights are repacked; takes less than 1 ms.

        The kernel brings whole neighbourhoods of what is needed: of a file that was written lately, 2 MiB at a time.
        """
        if self._is_repacked and not self._is_rested:
            let_go(self._file)
        self._is_rested = True

    def _obey(self, order: Order) -> None:
        if isinstance(order, Load):  # there is one model, and it is loaded
            return
        if isinstance(order, Generate):
            self._admit(order)
            return
        sequence = self._scheduler.find(order.uid)
        if sequence is None:
            return
        match order:
            case Cancel():
                self._finish(sequence, "cancelled")
            case Hold():
                sequence.timing.hold(time.monotonic())
            case Release():
                sequence.timing.release(time.monotonic())

    def _admit(self, order: Generate) -> None:
        try:
            sequence = self._reader.read(order)
        except OrderError as no:
            end = Finished(order.uid, "error", error=no.error, message=no.message)
            self._unsent.end(replace(end, prompt_tokens=no.prompt_tokens, completion_tokens=len(order.generated)))
            return
        self._scheduler.add(sequence)
        if order.generated:
            self._end_if_due(sequence)

    def _step(self, slices: list[Slice]) -> None:
        self._share_cores()
        self._is_rested = False
        outputs = self._fill(slices)
        decoding = sum(1 for piece in slices if piece.sequence.is_decoding)
        prefill = self._batch.size - decoding
        started = time.monotonic()
        try:
            self._compute(self._scheduler.costs.expected_s(decoding=decoding, prefill=prefill))
        except DecodeError as error:
            self._is_aborted = error.code == ABORTED
            self._survive(slices, error)
            return
        self._is_aborted = False
        if self._defragmenter is not None:
            self._defragmenter.note(self._batch.size)
        sampled = [(s, s.sampler.sample(self._context.pointer, index)) for s, index in outputs]
        now = time.monotonic()
        for piece in slices:
            piece.sequence.timing.begin(started)
            self._advance(piece)
        for sequence, token in sampled:
            sequence.timing.token(now, len(sampled))
            self._accept(sequence, token)
        self._scheduler.costs.learn(decoding=decoding, prefill=prefill, seconds=now - started)
        self._step_s = now - started
        self._note(now, 0 if prefill else decoding)

    def _share_cores(self) -> None:
        """Use as many threads as there are cores for, and all where the answer is to be the same to the last bit."""
        if not self._prefiller.is_busy:
            exact = any(sequence.exact and sequence.is_alone for sequence in self._scheduler.running)
            self._context.use(self._threads.most if exact else self._threads.count)

    def _note(self, now: float, kind: int) -> None:
        """Find out whether others want the cores; `kind` is how many sequences the step decoded, if nothing else."""
        threads = self._threads
        if self._context.threads != threads.count:
            threads.forget(now)
        elif news := threads.note(now, self._step_s, kind):
            self._channel.send(Note("info", news))

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

    def _compute(self, expected_s: float | None) -> float:
        """Compute the batch under the daemon's eyes; returns how long it took, seconds."""
        started = time.monotonic()
        self._pulse.begin(expected_s, again=self._is_aborted)
        try:
            self._context.decode(self._batch.raw)
        finally:
            self._pulse.end()
        return time.monotonic() - started

    def _advance(self, piece: Slice) -> None:
        self._scheduler.advance(piece)
        self._progress(piece.sequence, piece.sequence.computed)

    def _progress(self, sequence: Sequence, computed: int) -> None:
        done = min(computed, sequence.prompt_tokens)
        if sequence.wants_progress and done > sequence.reached:
            self._unsent.progress(sequence.uid, done, sequence.prompt_tokens)
        sequence.reached = max(sequence.reached, done)

    def _begin_answer(self, sequence: Sequence, context: Context) -> None:
        """Take the token that follows what was computed in another context."""
        token = sequence.sampler.sample(context.pointer, -1)
        sequence.timing.token(time.monotonic(), 1)
        self._accept(sequence, token)

    def _accept(self, sequence: Sequence, token: int) -> None:
        """Take a sampled token: its text goes out, or the sequence ends."""
        if self._model.vocabulary.is_end(token):
            self._finish(sequence, "stop")
            return
        sequence.tokens.append(token)
        sequence.held_tokens.append(token)
        self._say(sequence, sequence.text.push(self._model.vocabulary.piece(token)))
        self._end_if_due(sequence)

    def _end_if_due(self, sequence: Sequence) -> None:
        if sequence.text.stopped:
            self._finish(sequence, "stop")
        elif sequence.generated >= sequence.max_tokens or not self._scheduler.has_room(sequence):
            self._finish(sequence, "length")

    def _say(self, sequence: Sequence, text: str) -> None:
        if text:
            self._unsent.say(sequence.uid, text, sequence.held_tokens, first=sequence.is_silent)
            sequence.held_tokens = []
            sequence.is_silent = False

    def _finish(self, sequence: Sequence, reason: str, message: str = "") -> None:
        self._say(sequence, sequence.text.end())
        self._scheduler.remove(sequence)
        sequence.sampler.close()
        cached = sequence.cached_tokens or 0
        timings = sequence.timing.metrics(prefilled=max(0, sequence.reached - cached), now=time.monotonic())
        self._unsent.end(
            Finished(
                sequence.uid,
                reason,
                prompt_tokens=sequence.prompt_tokens,
                cached_tokens=cached,
                completion_tokens=sequence.generated,
                timings={**timings, "preemptions": sequence.preemptions},
                error="internal" if reason == "error" else "",
                message=message,
            )
        )

    def _survive(self, slices: list[Slice], error: DecodeError) -> None:
        """Go on after a step that was not computed: aborted for an order's sake, no room, or a failure.

        What fails ends those that were in the batch, and nobody else.
        """
        if error.code == ABORTED:
            self._scheduler.undo(slices)
            return
        if error.code == NO_ROOM and self._scheduler.make_room():
            return
        self._channel.send(Note("error", f"{error} with {self._batch.size} tokens of {len(slices)} sequences"))
        for piece in slices:
            self._finish(piece.sequence, "error", f"llama.cpp could not compute this step ({error}); try again")


def serve(channel: Channel, pulse: Pulse) -> int:
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

    log = LogTap(lambda level, text: channel.send(Note(level, text)), muted=lambda: pulse.aborting)
    try:
        if not offloads(load) and (why := shortage(load)):
            raise ModelError(why, "out_of_memory")  # noqa: TRY301 - it is answered as llama.cpp's own refusals are
        model = Model(load, on_progress=progress, log=log, abort_flag=pulse.abort_flag)
        worker = Worker(channel, model, pulse, load)
        worker.try_out()
    except (ModelError, PromptError) as error:
        channel.send(Failed(str(error), getattr(error, "error", "unavailable")))
        return 1
    except DecodeError as error:
        channel.send(Failed(f"llama.cpp cannot compute {Path(load.path).name!r}: {error}"))
        return 1
    channel.send(
        Ready(
            context=model.context.cells,
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
    """Entry point of the child; its arguments are the numbers of the inherited page and socket."""
    belong_to_parent()
    keep_less_than(_LARGE)
    pulse = Pulse(int(argv[1]))
    with socket.socket(fileno=int(argv[2])) as sock:
        try:
            return serve(Channel(sock), pulse)
        except (BrokenPipeError, ConnectionResetError):
            return 0  # the daemon is gone, and nobody is left to tell


if __name__ == "__main__":
    sys.exit(main(sys.argv))
