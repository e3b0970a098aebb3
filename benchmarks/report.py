"""What a run looks like: tables and verdicts for people, JSON for programs, one picture with a panel a scenario."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.outcome import Outcome


@dataclass(slots=True)
class Run:
    """A whole run.

    Attributes:
        machine: what it ran on, in a line.
        model: the file's name.
        settings: what a reader has to know of them.
        outcomes: by the name of the scenario.
        failures: why a scenario failed, by its name.
    """

    machine: str
    model: str
    settings: dict[str, Any]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def text(run: Run) -> str:
    """All of it, in Markdown."""
    lines = [run.machine, f"{run.model}; {', '.join(f'{name} {value}' for name, value in run.settings.items())}"]
    for name, outcome in run.outcomes.items():
        lines += ["", f"## {outcome.title} ({name})"]
        for table in outcome.tables():
            lines += ["", *table.lines()]
        lines += ["", *(f"- {verdict}" for verdict in outcome.verdicts())]
    for name, why in run.failures.items():
        lines += ["", f"## FAILED: {name}", "", why]
    verdicts = [verdict for outcome in run.outcomes.values() for verdict in outcome.verdicts()]
    met = sum(verdict.met for verdict in verdicts)
    lines += ["", f"{met} of {len(verdicts)} figures are as asked; {len(run.failures)} scenarios failed."]
    return "\n".join(lines)


def to_json(run: Run) -> str:
    """Everything that was measured, and what is asked of it."""
    return json.dumps(
        {
            "machine": run.machine,
            "model": run.model,
            "settings": run.settings,
            "scenarios": {
                name: {
                    "title": outcome.title,
                    "figures": outcome.record(),
                    "verdicts": [
                        {
                            "what": verdict.what,
                            "measured": verdict.measured,
                            "least" if verdict.least else "most": verdict.limit,
                            "unit": verdict.unit,
                            "met": verdict.met,
                        }
                        for verdict in outcome.verdicts()
                    ],
                }
                for name, outcome in run.outcomes.items()
            },
            "failures": run.failures,
        },
        indent=2,
    )


def plot(run: Run, file: Path) -> None:
    """Draw a panel for each scenario, as PNG."""
    import matplotlib as mpl  # noqa: PLC0415 - slow, and only --plot wants it

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    columns = min(3, max(1, len(run.outcomes)))
    rows = max(1, -(-len(run.outcomes) // columns))
    drawing, grid = plt.subplots(
        rows, columns, figsize=(5.5 * columns, 3.8 * rows), layout="constrained", squeeze=False
    )
    panels = list(grid.flat)
    for axes, outcome in zip(panels, run.outcomes.values(), strict=False):
        outcome.draw(axes)
        axes.set_title(outcome.title, fontsize=9)
    for axes in panels[len(run.outcomes) :]:
        axes.set_axis_off()
    drawing.suptitle(f"{run.model}\n{run.machine}", fontsize=8)
    drawing.savefig(file, dpi=120)
    plt.close(drawing)
