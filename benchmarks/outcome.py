"""What a scenario gives back: figures, which tables, verdicts and a drawing are made of. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is asked of a figure, beside what it was.

    Attributes:
        what: the figure, in words.
        measured: in `unit`.
        limit: in `unit`.
        least: whether `limit` is the least that is asked, and not the most.
    """

    what: str
    measured: float
    limit: float
    unit: str = ""
    least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure is as good as asked."""
        return self.measured >= self.limit if self.least else self.measured <= self.limit

    def __str__(self) -> str:
        sign, unit = ">=" if self.least else "<=", f" {self.unit}" if self.unit else ""
        asked, measured = f"{sign} {self.limit:g}{unit}", f"{self.measured:.3g}{unit}"
        return f"{'met' if self.met else 'MISSED'}: {self.what}. Asked: {asked}; measured: {measured}"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a head, all of them as long as it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self) -> list[str]:
        """It in Markdown, with its title above."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [self.head, ["-" * (width - 1) + ":" for width in widths], *self.rows]
        drawn = (
            "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines
        )
        return [self.title, "", *drawn]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of a scenario; each scenario has its own, with what is asked of them."""

    #: What the scenario is about, in a line.
    title: ClassVar[str] = ""

    def tables(self) -> list[Table]:
        """The figures for people."""
        raise NotImplementedError

    def verdicts(self) -> list[Verdict]:
        """What is asked of them."""
        raise NotImplementedError

    def record(self) -> dict[str, Any]:
        """The figures for programs: what JSON can say."""
        return asdict(self)

    def draw(self, axes: Any) -> None:
        """The figures as a picture, into matplotlib's `Axes`."""
        raise NotImplementedError


def bars(axes: Any, names: Sequence[str], values: Sequence[float], *, unit: str, limit: float | None = None) -> None:
    """Draw horizontal bars, the first on top, and the limit that they should not cross."""
    places = range(len(names))
    axes.barh(places, values, color="tab:blue")
    axes.set(yticks=places, yticklabels=names, xlabel=unit)
    axes.invert_yaxis()
    for place, value in zip(places, values, strict=True):
        axes.annotate(f"{value:.3g}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
    if limit is not None:
        axes.axvline(limit, color="tab:red", linestyle="--")
    axes.margins(x=0.15)
