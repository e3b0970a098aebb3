"""How streams end, and how their text is said until then."""

from __future__ import annotations

from edged.core.events import Cancel, Finished, Now
from edged.core.parts import Parts
from edged.core.stream import MAX_CHUNK_BYTES, Ending, State, Stream

#: What a message may have beside the text in it, bytes; and how many bytes of JSON one of text may need.
_ENVELOPE, _ESCAPED = 2048, 6


class Ends:
    """Says what is left to say of a stream, and lets go of it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def cancel(self, stream: Stream, ending: Ending, now: Now) -> None:
        """Stop a stream, wherever it stands."""
        if stream.state is State.WAITING:
            survivors = self._parts.fleet[stream.model].survivors
            (survivors if stream in survivors else self._parts.queue).remove(stream)
            self.finish(stream, ending, None, now)
        elif stream.state is State.RUNNING:
            stream.state = State.CANCELLING
            stream.ending = ending
            if not stream.aside:  # then the engine has been asked before
                self._parts.out.do(Cancel(stream.model, stream.uid))

    def finish(self, stream: Stream, ending: Ending, engine: Finished | None, now: Now) -> None:
        """Say the rest and the final.

        Args:
            stream: no engine has it any more, and no queue.
            ending: how it ends.
            engine: what the engine said of it, if it had it to the end.
            now: the time.
        """
        while self.say_chunk(stream, now):
            pass
        node, largest = self._parts.settings.topics.node, self._parts.largest
        most = None if largest is None else max(0, largest - _ENVELOPE)
        final = stream.final(ending, engine, node=node, now=now, max_bytes=most)
        self._parts.say(stream, final)
        self._parts.courier.end(stream.delivery, now)
        self._parts.ending[stream.uid] = stream
        self._parts.holds.ended(stream)
        self._parts.meter.finished[ending.reason] += 1
        if final.usage:
            self._parts.meter.prompt_tokens += final.usage.prompt_tokens
        if stream.started is not None:
            self._parts.admission.served(now.mono - stream.started)
        self._parts.out.log("info", "request", **stream.summary(final))

    def say_chunk(self, stream: Stream, now: Now) -> bool:
        """Say a part of the text that waits, if any does; whether it did."""
        if (piece := stream.piece()) is not None:
            self._parts.courier.keep(piece)
            return True
        largest = self._parts.largest
        most = MAX_CHUNK_BYTES if largest is None else min(MAX_CHUNK_BYTES, max(1, (largest - _ENVELOPE) // _ESCAPED))
        chunk = stream.chunk(now, max_bytes=most)
        if chunk is None:
            return False
        message, tokens = chunk
        self._parts.courier.say(stream.delivery, message, message.text, tokens)
        return True

    def forget(self, stream: Stream) -> None:
        """It never was."""
        del self._parts.streams[stream.key]
        engine = self._parts.fleet[stream.model]
        if engine.running.pop(stream.uid, None) is not None:
            self._parts.out.do(Cancel(stream.model, stream.uid))
        elif stream in engine.survivors:
            engine.survivors.remove(stream)
        elif stream.state is State.WAITING:
            self._parts.queue.remove(stream)
        stream.state = State.ENDED
        self._parts.holds.ended(stream)
