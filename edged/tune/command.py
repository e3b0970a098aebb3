"""`edged tune`, from the settings to the verdict."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from edged import wiring
from edged.config import Sources
from edged.config.settings import Model
from edged.engine.cores import usable_cores
from edged.tune import layouts, others, search
from edged.tune.child import Trials
from edged.tune.edit import Changes
from edged.tune.report import Report
from edged.tune.search import Point, Row, Search, Speed, TrialFailed
from edged.tune.subject import Subject

#: Sizes of the physical batch that are tried, tokens.
UBATCHES = (32, 64, 128, 256)
#: A requantised file whose perplexity is so much higher is not chosen, however fast it is. A fraction.
MOST_LOSS = 0.2
#: Where the service cannot look (systemd/edged.service, ProtectHome=).
_HOMES = (Path("/root"), Path("/home"))
#: How long others are watched before it begins, seconds.
_LOOK_S = 1.0
_AFTER = "; it takes effect when the daemon is started again"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long one trial is, and how often it is repeated.

    Attributes:
        rounds: how often each candidate is measured.
        prompt, depth, steps, streams: see `edged.engine.trial.Work`.
        windows: of the text, by which the perplexity is measured.
    """

    rounds: int = 3
    prompt: int = 512
    depth: int = 128
    steps: int = 24
    streams: int = 4
    windows: int = 99


#: For a first impression: one round of short trials.
QUICK = Effort(rounds=1, prompt=96, depth=24, steps=8, windows=2)


def text() -> str:
    """The text that models are measured with; it was written for it."""
    return resources.files("edged.tune").joinpath("text.txt").read_text(encoding="utf-8")


class Tuning:
    """One model's search.

    Args:
        trials: runs what is measured.
        effort: how thoroughly.
        tell: is called with progress: a line, or the beginning of one that a later call ends.
    """

    def __init__(self, subject: Subject, trials: Trials, effort: Effort, tell: Callable[[str], None]) -> None:
        self._subject = subject
        self._trials = trials
        self._effort = effort
        self._tell = tell
        self._text = text()
        self._directory = subject.settings.journal.file().parent.absolute() / "models"
        self._workshop: layouts.Workshop | None = None
        self._facts: dict[str, Any] = {}
        self._perplexities: dict[Path, float] = {}
        self._busiest = 0.0

    def run(self, *, requantise: bool) -> Report:
        """Measure, and find the best; requantised files that are not chosen are removed again.

        Raises:
            OSError: a file that was made cannot be removed.
        """
        model, file = self._subject.model, self._subject.file
        cores = usable_cores()
        current = Point(
            model.threads or cores,
            model.ubatch,
            model.flash_attention,
            file.path,
            file.quantisation or "?",
            file.size,
        )
        steps = [search.threads(search.thread_counts(cores))]
        # a KV cache of another type needs flash attention
        steps.append(search.flash_attention(["on", "off"] if model.kv_type == "f16" else ["on"]))
        steps.append(search.ubatch(UBATCHES))
        if requantise:
            steps.append(self._layouts)
        searching = Search(self._measure, rounds=self._effort.rounds)
        keep: Path | None = None
        try:
            chosen = searching.run(current, steps)
            keep = chosen.point.file
        finally:  # after a Ctrl-C as well
            if self._workshop:
                self._workshop.clear(keep=keep)
        if self._busiest > others.QUIET:
            self._tell(
                f"warning: other processes used up to {self._busiest:.1f} processors meanwhile, so the figures are too "
                "low, and may be wrong beside each other\n"
            )
        changes = self._subject.complete(_changes(model, current, chosen.point))
        return Report(model.alias, searching.rows, chosen, changes, self._perplexities)

    def _load(self, point: Point) -> dict[str, Any]:
        model = self._subject.model.model_copy(
            update={"threads": point.threads, "ubatch": point.ubatch, "flash_attention": point.flash_attention}
        )
        return asdict(wiring.load(model, point.file, self._subject.settings))

    def _measure(self, row: Row) -> Speed:
        point, effort = row.point, self._effort
        self._tell(
            f"{row.what}: {point.threads} threads, ubatch {point.ubatch}, flash {point.flash_attention}, "
            f"{point.kind} … "
        )
        work = {"prompt": effort.prompt, "depth": effort.depth, "steps": effort.steps, "streams": effort.streams}
        found = self._run({"op": "speed", "load": self._load(point), "work": {"text": self._text, **work}})
        self._facts = found
        speed = Speed(
            prefill=found["prefill"],
            decode_one=found["decode_one"],
            decode_many=found["decode_many"],
            streams=found["streams"],
            memory=found["memory"],
        )
        self._tell(f"prefill {speed.prefill:.0f}, decode {speed.decode_one:.0f} and {speed.decode_many:.0f} tokens/s\n")
        return speed

    def _run(self, order: dict[str, Any]) -> dict[str, Any]:
        watch = others.Watch.begin()
        try:
            return self._trials.run(order)
        except TrialFailed as error:
            self._tell(f"failed: {error}\n")
            raise
        finally:
            self._busiest = max(self._busiest, watch.others())

    def _layouts(self, best: Point) -> list[Row]:
        """Requantised files of the one that is configured, with their perplexities."""
        source = self._subject.file
        if not self._facts:
            return []  # nothing could be measured
        parameters = self._facts["parameters"]
        kinds = layouts.worth_trying(source, self._facts["types"], parameters)
        if not kinds:
            self._tell(f"no requantised files: {source.quantisation or 'this type'} has nothing to gain from it\n")
            return []
        workshop = self._workshop = layouts.Workshop(
            self._trials, source, self._directory, parameters=parameters, threads=best.threads
        )
        before = self._perplexity(replace(best, file=source.path))
        return [self._layout(workshop, kind, best, before) for kind in kinds]

    def _layout(self, workshop: layouts.Workshop, kind: str, best: Point, before: float | None) -> Row:
        row = Row(kind, replace(best, kind=kind, size=0))
        self._tell(f"{kind}: making the file … ")
        try:
            made = workshop.make(kind)
        except TrialFailed as error:
            row.failure = str(error)
            self._tell(f"failed: {error}\n")
            return row
        self._tell(f"{made.size / 1e6:.0f} MB\n")
        row.point = replace(row.point, file=made.path, size=made.size)
        after = self._perplexity(row.point)
        if before is None or after is None:
            row.barred = "what its quality is could not be measured"
        elif after > before * (1 + MOST_LOSS):
            row.barred = f"its perplexity is {after / before - 1:.0%} higher, and {MOST_LOSS:.0%} is the most"
        return row

    def _perplexity(self, point: Point) -> float | None:
        """Measured and remembered for the report; None where it cannot be measured."""
        self._tell(f"perplexity of {point.file.name} … ")
        order = {"op": "perplexity", "load": self._load(point), "text": self._text, "windows": self._effort.windows}
        try:
            value: float = self._run(order)["perplexity"]
        except TrialFailed:
            return None
        self._tell(f"{value:.2f}\n")
        self._perplexities[point.file] = value
        return value


def _changes(model: Model, current: Point, chosen: Point) -> dict[str, str | int]:
    """The keys of `[[models]]` that turn the current settings into the chosen ones."""
    changes: dict[str, str | int] = {}
    if chosen.file != current.file:
        # the alias may have been made of the old file's name, and requests go on using it
        changes |= {"alias": model.alias, "path": str(chosen.file)}
    for key, before, now in (
        ("threads", current.threads, chosen.threads),
        ("ubatch", current.ubatch, chosen.ubatch),
        ("flash_attention", current.flash_attention, chosen.flash_attention),
    ):
        if now != before:
            changes[key] = now
    return changes


def hidden(config: Path | None, changes: Changes) -> str:
    """A warning where the service could not see the chosen file; empty where it can."""
    path = Path(str(changes.get("path", "")))
    if config is None or Path("/etc") not in config.absolute().parents:
        return ""
    if not any(home in path.parents for home in _HOMES) or os.environ.get("STATE_DIRECTORY"):
        return ""
    return (
        f"warning: the service cannot see {str(path.parent)!r}; run this with STATE_DIRECTORY=/var/lib/edged, and the "
        "file is kept where it can"
    )


def tune(  # noqa: PLR0913 - one for each option
    name: str | None,
    sources: Sources,
    *,
    write: bool,
    quick: bool,
    as_json: bool,
    requantise: bool,
    say: Callable[[str], None],
    tell: Callable[[str], None],
    trials: Trials,
) -> int:
    """Measure a model, show what was found and, if wanted, write the winner into the configuration.

    Args:
        name: an alias, or the path of a GGUF file; None for the first model.
        sources: of the settings.
        write: change the configuration file.
        quick: a first impression.
        as_json: the report as JSON instead of a table.
        requantise: try other types of the file too.
        say: is called with the report.
        tell: is called with progress and warnings, parts of lines.
        trials: runs what is measured.

    Returns:
        The exit code: 1 if nothing could be measured.

    Raises:
        ConfigError: the settings are wrong, there is no such model, or the file cannot be written.
        ModelFileError: the model's file cannot be used.
    """
    subject = Subject.find(name, sources)
    if write:
        subject.check_writable()
    busy = others.look(_LOOK_S)
    if busy > others.QUIET:
        tell(
            f"warning: other processes use {busy:.1f} processors of this machine, and disturb the figures; stop them "
            "for this time, the daemon too\n"
        )
    report = Tuning(subject, trials, QUICK if quick else Effort(), tell).run(requantise=requantise)
    say(json.dumps(report.as_json(), indent=2) if as_json else f"{report.table()}\n\n{report.verdict()}")
    if not any(row.score for row in report.rows):
        tell(f"edged: nothing could be measured: {report.rows[0].failure}\n")
        return 1
    if write:
        changed = subject.write(report.changes) if report.changes else "nothing to write"
        tell(f"{changed}{_AFTER if report.changes else ''}\n")
    if warning := hidden(subject.config, report.changes):
        tell(f"{warning}\n")
    return 0
