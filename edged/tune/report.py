"""What `edged tune` found, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edged.tune.edit import snippet
from edged.tune.search import GAIN, Row

_NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Report:
    """A finished search.

    Attributes:
        model: the alias.
        rows: all that was tried, the current settings first.
        chosen: the one to use.
        changes: the keys of its `[[models]]` entry that make it so; empty where the current settings stay.
        perplexities: by file; the text is the same for all.
    """

    model: str
    rows: Sequence[Row]
    chosen: Row
    changes: Mapping[str, str | int]
    perplexities: Mapping[Path, float]

    @property
    def gain(self) -> float:
        """How much faster the chosen settings are than the current ones, a fraction; 0 where these failed."""
        before = self.rows[0].score
        return self.chosen.score / before - 1 if before else 0.0

    def loss(self, row: Row) -> float | None:
        """How much higher the perplexity of a row's file is than that of the current one, a fraction; or unknown."""
        before, now = (self.perplexities.get(r.point.file) for r in (self.rows[0], row))
        return now / before - 1 if now is not None and before is not None else None

    def table(self) -> str:
        """A row for each trial. Speeds in tokens per second; sizes in MB (10^6 bytes)."""
        streams = max((row.speed.streams for row in self.rows if row.speed), default=1)
        head = ["what", "threads", "ubatch", "flash", "file", "size MB", "prefill t/s", "decode 1"]
        head += [f"decode {streams}", "memory MB", "perplexity"]
        cells = [head, *map(self._cells, self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        lines = [_line(row, widths) for row in cells]
        lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
        # a reason may be long: it ends its row, beyond the columns
        reasons = ["", "", *(f" failed: {row.failure}" if row.failure else "" for row in self.rows)]
        return "\n".join(line + reason for line, reason in zip(lines, reasons, strict=True))

    def _cells(self, row: Row) -> list[str]:
        point, speed = row.point, None if row.failure else row.speed
        figures = [_NOTHING] * 4
        if speed:
            figures = [f"{n:.0f}" for n in (speed.prefill, speed.decode_one, speed.decode_many, speed.memory / 1e6)]
        return [
            f"{'* ' if row is self.chosen else ''}{row.what}",
            str(point.threads),
            str(point.ubatch),
            point.flash_attention,
            point.kind,
            f"{point.size / 1e6:.0f}" if point.size else _NOTHING,
            *figures,
            self._quality(row),
        ]

    def _quality(self, row: Row) -> str:
        value, loss = self.perplexities.get(row.point.file), self.loss(row)
        if value is None:
            return _NOTHING
        return f"{value:.2f} ({loss:+.1%})" if loss and row.point.file != self.rows[0].point.file else f"{value:.2f}"

    def verdict(self) -> str:
        """In sentences, what to change and what it brings and costs; with the lines for the configuration file."""
        barred = [f"{row.what} was not considered: {row.barred}." for row in self.rows if row.barred]
        if not self.changes:
            if not any(row.score for row in self.rows):
                return "\n".join([*barred, "Nothing could be measured."])
            return "\n".join([*barred, f"Keep what you have: nothing was more than {GAIN:.0%} faster."])
        before = self.rows[0].failure
        gain = "The current settings failed, these work." if before else f"{self.gain:.0%} faster on the whole."
        loss = self.loss(self.chosen)
        quality = []
        if loss and self.chosen.point.file != self.rows[0].point.file:
            worse = "higher: answers get a little worse" if loss > 0 else "lower: nothing is lost"
            told = f"It is another file, made of the one you have. Its perplexity is {abs(loss):.1%} {worse}."
            quality = [told, "--no-requantise keeps the file that you have."]
        return "\n".join(
            [
                *barred,
                f"* {self.chosen.what}: {gain}",
                *quality,
                "",
                f"For the model {self.model!r}:",
                snippet(self.changes),
            ]
        )

    def as_json(self) -> dict[str, Any]:
        """All of it: speeds in tokens per second, sizes in bytes, gain and loss as fractions."""
        return {
            "model": self.model,
            "gain": self.gain,
            "changes": dict(self.changes),
            "trials": [self._trial(row) for row in self.rows],
        }

    def _trial(self, row: Row) -> dict[str, Any]:
        speed = None if row.failure or row.speed is None else asdict(row.speed) | {"score": row.speed.score}
        return {
            "what": row.what,
            "chosen": row is self.chosen,
            "settings": asdict(row.point) | {"file": str(row.point.file)},
            "speed": speed,
            "perplexity": self.perplexities.get(row.point.file),
            "loss": self.loss(row),
            "failed": row.failure or None,
            "barred": row.barred or None,
        }


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Words to the left, numbers to the right."""
    texts = {0, 3, 4}
    filled = [c.ljust(w) if i in texts else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return f"| {' | '.join(filled)} |"
