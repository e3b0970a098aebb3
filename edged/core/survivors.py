"""The streams that outlived their engine's death. They go on before anything new begins, the oldest first.

One of them may be what killed the engine. So after a death each of them is a suspect: it goes on alone, with nobody
else in the engine, until it is so much further that it is cleared (`Stream.add`). An engine that dies meanwhile was
killed by that one, and by nobody else. A stream that is cleared while others are still under suspicion is set aside
until they have had their turn, so that a long answer does not hold up all the others. One that is held (a pause, or a
broker that is slow) could not be cleared: it waits, and nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from edged.core.stream import Stream


class Survivors:
    """Those of one model that wait to go on. They had their place before, so nothing bounds them but the engine's."""

    def __init__(self) -> None:
        self._waiting: dict[int, Stream] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Stream]:
        """All of them, the oldest first."""
        return iter([self._waiting[uid] for uid in sorted(self._waiting)])

    def __contains__(self, stream: Stream) -> bool:
        return stream.uid in self._waiting

    def add(self, stream: Stream) -> None:
        """Take one in."""
        self._waiting[stream.uid] = stream

    def remove(self, stream: Stream) -> None:
        """Let one go that will not go on."""
        del self._waiting[stream.uid]

    def clear(self) -> None:
        """Let all go."""
        self._waiting.clear()

    @property
    def suspects(self) -> bool:
        """Whether any of them is still to be cleared, and could be."""
        return any(stream.suspected for stream in self._ready)

    @property
    def ready(self) -> bool:
        """Whether any of them could go on."""
        return bool(self._ready)

    @property
    def _ready(self) -> list[Stream]:
        """Those who could go on, the oldest first."""
        return [stream for stream in self if not (stream.suspected and stream.holds)]

    def next(self, running: Collection[Stream], places: int) -> Stream | None:
        """Take out the one that goes on now; None where it has to wait.

        Args:
            running: the streams that the engine has.
            places: how many it may have.
        """
        ready = self._ready
        candidates = [stream for stream in ready if stream.suspected] or ready
        if not candidates or not _fits(candidates[0], running, places):
            return None
        return self._waiting.pop(candidates[0].uid)


def alone(running: Collection[Stream]) -> bool:
    """Whether a suspect is running, whom nobody may join."""
    return any(stream.suspected for stream in running)


def _fits(stream: Stream, running: Collection[Stream], places: int) -> bool:
    if stream.suspected:
        return not running
    return len(running) < places and not alone(running)
