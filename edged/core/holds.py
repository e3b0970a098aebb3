"""Streams for which nothing is generated for a while: a consumer asked for it, or what they say does not get away."""

from __future__ import annotations

from typing import Literal

from edged.core.events import Effect, Hold, Now, Release
from edged.core.stream import State, Stream

Why = Literal["pause", "backlog"]


class Holds:
    """Holds streams and lets them go on.

    Args:
        max_pause_s: a pause ends by itself after so long.
    """

    def __init__(self, max_pause_s: float) -> None:
        self._max_pause_s = max_pause_s
        self._paused: dict[int, Stream] = {}

    def begun(self, stream: Stream) -> list[Effect]:
        """A stream was given to an engine, perhaps while it is held."""
        return [Hold(stream.model, stream.uid)] if stream.holds else []

    def pause(self, stream: Stream, now: Now) -> list[Effect]:
        """A consumer wants nothing more for now; asked again, the time counts from then."""
        if "pause" not in stream.holds:
            stream.tell("paused")
        stream.paused_until = now.mono + self._max_pause_s
        self._paused[stream.uid] = stream
        return self._hold(stream, "pause")

    def resume(self, stream: Stream) -> list[Effect]:
        """A consumer wants more, or has had time enough."""
        if "pause" in stream.holds:
            stream.tell("resumed")
        stream.paused_until = None
        self._paused.pop(stream.uid, None)
        return self._release(stream, "pause")

    def weigh(self, stream: Stream) -> list[Effect]:
        """See whether too much of a stream waits to be published, or little enough again."""
        match stream.answer.is_far_ahead:
            case True:
                return self._hold(stream, "backlog")
            case False:
                return self._release(stream, "backlog")
            case _:
                return []

    def ended(self, stream: Stream) -> None:
        """There is nothing to hold any more."""
        stream.holds.clear()
        self._paused.pop(stream.uid, None)

    @property
    def next(self) -> float | None:
        """When a pause has been long enough, monotonic seconds; None where there is none."""
        return min((s.paused_until for s in self._paused.values() if s.paused_until is not None), default=None)

    def on_time(self, now: Now) -> list[Effect]:
        """End the pauses that have been long enough."""
        over = [s for s in self._paused.values() if s.paused_until is not None and s.paused_until <= now.mono]
        return [effect for stream in over for effect in self.resume(stream)]

    @staticmethod
    def _hold(stream: Stream, why: Why) -> list[Effect]:
        first = not stream.holds
        stream.holds.add(why)
        return [Hold(stream.model, stream.uid)] if first and stream.state is State.RUNNING else []

    @staticmethod
    def _release(stream: Stream, why: Why) -> list[Effect]:
        if why not in stream.holds:
            return []
        stream.holds.remove(why)
        running = stream.state is State.RUNNING
        return [Release(stream.model, stream.uid)] if not stream.holds and running else []
