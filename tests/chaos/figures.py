"""What a storm came to, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.exchange import Exchange


@dataclass(frozen=True, slots=True)
class Figures:
    """The outcome of a run.

    Attributes:
        seed: with it and the same counts, requests and faults are the same ones in the same order.
        took_s: seconds of the machine's clock.
        faults: how often each kind happened, in the order of the catalogue.
        exchanges: all requests.
        strays: what is wrong and belongs to no request.
        memory_kib: resident, of the daemon's own process, at the end.
    """

    seed: int
    took_s: float
    faults: dict[str, int]
    exchanges: Sequence[Exchange]
    strays: Sequence[str]
    memory_kib: int

    @property
    def lost(self) -> list[Exchange]:
        """Requests without a whole answer, of which nothing is known to be wrong."""
        return [one for one in self.exchanges if one.result is None and not one.wrong]

    @property
    def wrong(self) -> list[str]:
        """Every promise that was broken, in words."""
        return [*(f"{one.id}: {what}" for one in self.exchanges for what in one.wrong), *self.strays]

    @property
    def passed(self) -> bool:
        """Whether nothing was lost and nothing wrong."""
        return not self.lost and not self.wrong

    def _count(self, name: str) -> int:
        return sum(getattr(one, name) for one in self.exchanges)

    def table(self) -> str:
        """For people: a line for each figure, then what went wrong."""
        results = [one.result for one in self.exchanges if one.result is not None]
        kinds = Counter(one.kind.value for one in self.exchanges)
        endings = Counter(str(result.finish_reason) for result in results)
        refusals = Counter(code for one in self.exchanges for code in one.refusals)
        preempted = [result.final.metrics.preemptions for result in results if result.final.metrics is not None]
        resumed = [result.final.metrics.resumed for result in results if result.final.metrics is not None]
        rows = [
            ("seed", self.seed, f"{self.took_s:.0f} s"),
            ("requests", len(self.exchanges), _listed(kinds)),
            ("finals", self._count("finals"), _listed(endings)),
            ("chunks", self._count("chunks"), ""),
            ("faults", sum(self.faults.values()), ""),
            *(("", count, kind) for kind, count in self.faults.items()),
            ("published again", sum(one.asked - 1 for one in self.exchanges), _listed(refusals)),
            ("replays asked", self._count("replays"), ""),
            ("duplicates removed", self._count("duplicates"), ""),
            ("gaps healed", sum(one.gaps for one in self.exchanges if one.result is not None), ""),
            ("resumed", sum(resumed), f"in {sum(map(bool, resumed))} answers"),
            ("paused", sum(one.resume_at is not None for one in self.exchanges), ""),
            ("made way", sum(preempted), f"in {sum(map(bool, preempted))} answers"),
            ("memory", self.memory_kib // 1024, "MiB, the daemon's own process at the end"),
            ("lost", len(self.lost), " ".join(one.id for one in self.lost[:20])),
            ("wrong", len(self.wrong), ""),
        ]
        lines = [f"{name:<19} {number:>7}  {note}".rstrip() for name, number, note in rows]
        return "\n".join([*lines, *(f"  {what}" for what in self.wrong[:50])])


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
