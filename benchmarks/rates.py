"""The figures of throughput: of both sides, by number of streams and repeat. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from benchmarks.figures import Figures, Middle, Spread, ratio
from benchmarks.machine import QUIET
from benchmarks.outcome import Outcome, Table, Verdict

#: What is asked of the ratio to the bare loop.
_RATIO = 0.92
#: Processors that the daemon's own process may use at 8 streams.
_PARENT_CORES = 0.10


@dataclass(frozen=True, slots=True)
class Repeat:
    """The measurements that belong together.

    Attributes:
        tokens: of each answer.
        turnover: of the node, with requests that come one after the other.
        cpus: processors in use, by process, each in its own turns; `others` all the time.
        waits: threads that could have run and had no processor, on average, by process, `bare` included; empty where
            the kernel does not tell.
    """

    streams: int
    tokens: int
    bare: Figures
    node: Figures
    turnover: Figures
    cpus: dict[str, float]
    waits: dict[str, float]

    @property
    def disturbed(self) -> bool:
        """Whether other processes took so much that the ratio says little."""
        return self.cpus["others"] > QUIET


@dataclass(frozen=True, slots=True)
class Series:
    """All repeats on one file.

    Attributes:
        lost: measurements of which nothing came, and why.
    """

    repeats: tuple[Repeat, ...]
    lost: tuple[str, ...] = ()

    def of(self, streams: int) -> list[Repeat]:
        """The repeats with so many streams that nobody disturbed, in order; all of them where somebody always did."""
        repeats = [repeat for repeat in self.repeats if repeat.streams == streams]
        return [repeat for repeat in repeats if not repeat.disturbed] or repeats

    @property
    def streams(self) -> list[int]:
        """The numbers of streams that were measured, in order."""
        return sorted({repeat.streams for repeat in self.repeats})

    def ratio(self, streams: int) -> Middle:
        """Tokens per second through MQTT by those of the bare loop, while all streams generate."""
        repeats = self.of(streams)
        return ratio([r.node.tokens_per_s for r in repeats], [r.bare.tokens_per_s for r in repeats])

    def overall_ratio(self, streams: int) -> Middle:
        """The same from the first request to the last token, prompts and round trips included."""
        repeats = self.of(streams)
        return ratio([r.node.overall_per_s for r in repeats], [r.bare.overall_per_s for r in repeats])

    def rate(self, streams: int) -> float:
        """Tokens per second through MQTT, of all streams together; median."""
        return Middle.of([r.node.tokens_per_s for r in self.of(streams)]).median

    def processors(self, streams: int, name: str) -> float:
        """Processors that a process used; median."""
        return Middle.of([r.cpus[name] for r in self.of(streams)]).median

    def waiting(self, streams: int, name: str) -> float | None:
        """Threads that waited for a processor; median. None where that is not known."""
        known = [r.waits[name] for r in self.of(streams) if name in r.waits]
        return Middle.of(known).median if known else None


@dataclass(frozen=True, slots=True)
class Throughput(Outcome):
    """By the form of the file."""

    title: ClassVar[str] = "Throughput through MQTT, beside the bare loop"

    forms: dict[str, Series]

    def tables(self) -> list[Table]:
        """Rates, gaps, turnover and processors of each form."""
        return [table for name, series in self.forms.items() for table in _tables(name, series)]

    def verdicts(self) -> list[Verdict]:
        """Of the ratios, and of the daemon's own process."""
        return [verdict for name, series in self.forms.items() for verdict in _verdicts(name, series)]

    def record(self) -> dict[str, Any]:
        """The medians by number of streams, and each repeat with its spreads."""
        return {name: _record(series) for name, series in self.forms.items()}

    def draw(self, axes: Any) -> None:
        """Rates of the node beside those of the bare loop."""
        sides = [(name, series, side) for name, series in self.forms.items() for side in ("bare", "node")]
        for i, (name, series, side) in enumerate(sides):
            middles = [Middle.of([getattr(r, side).tokens_per_s for r in series.of(n)]) for n in series.streams]
            axes.bar(
                [place + (i - (len(sides) - 1) / 2) * 0.8 / len(sides) for place in range(len(middles))],
                [m.median for m in middles],
                0.8 / len(sides),
                yerr=([m.median - m.least for m in middles], [m.most - m.median for m in middles]),
                label=f"{name}, {'bare loop' if side == 'bare' else 'edged'}",
                color=("0.75", "tab:blue", "0.55", "tab:cyan")[i % 4],
            )
        streams = next(iter(self.forms.values())).streams
        axes.set(xticks=range(len(streams)), xticklabels=[str(n) for n in streams], xlabel="streams", ylabel="tokens/s")
        axes.legend(fontsize=7)


def _verdicts(name: str, series: Series) -> list[Verdict]:
    verdicts = []
    for n in series.streams:
        part = series.ratio(n).median
        verdicts.append(Verdict(f"{name}, {n} streams: tokens/s by those of the bare loop", part, _RATIO, least=True))
    if 8 in series.streams:
        used = series.processors(8, "daemon")
        verdicts.append(Verdict(f"{name}: the daemon's own process at 8 streams", used, _PARENT_CORES, "cores"))
    return verdicts


def _tables(name: str, series: Series) -> list[Table]:
    by_streams = [(n, series.of(n)) for n in series.streams]
    rates = [
        [
            str(n),
            str(repeats[0].tokens),
            f"{Middle.of([r.bare.tokens_per_s for r in repeats]).median:.1f}",
            f"{series.rate(n):.1f}",
            str(series.ratio(n)),
            str(series.overall_ratio(n)),
        ]
        for n, repeats in by_streams
    ]
    gaps = [
        [
            str(n),
            str(Spread.of(g for r in repeats for g in r.bare.gaps_ms)),
            str(Spread.of(g for r in repeats for g in r.node.gaps_ms)),
            f"{Middle.of([r.turnover.tokens_per_s for r in repeats]).median:.1f}",
            str(Spread.of(v for r in repeats for v in r.turnover.later_ttft_ms)),
            f"{Middle.of([v for r in repeats for v in r.turnover.node_itl_ms]).median:.0f}",
            f"{max(v for r in repeats for v in r.turnover.node_p95_itl_ms):.0f}",
            f"{max(v for r in repeats for v in r.turnover.node_max_itl_ms):.0f}",
            str(Spread.of(v for r in repeats for v in r.node.ttft_ms)),
        ]
        for n, repeats in by_streams
    ]
    names = [one for one in series.repeats[0].cpus if one != "bare"]
    cpus = [
        [
            *(str(n), *(f"{series.processors(n, one):.3f}" for one in names)),
            *("-" if at is None else f"{at:.3f}" for at in (series.waiting(n, "engine"), series.waiting(n, "bare"))),
        ]
        for n, _repeats in by_streams
    ]
    return [
        Table(
            f"{name}: all streams generate; tokens/s of all together, medians; ratios edged / bare loop, median "
            f"(least to most){_warning(series)}",
            ["streams", "tokens each", "bare loop", "edged", "ratio", "ratio, prompts and round trip included"],
            rates,
        ),
        Table(
            f"{name}: gaps and, where each client asks again when its answer has ended, TTFT; ms (p50 / p95 / max)",
            [
                *("streams", "bare loop: between tokens", "consumer: between chunks"),
                *("asking again: tokens/s", "TTFT", "node: mean ITL", "worst p95 ITL", "max ITL"),
                "TTFT, all at once",
            ],
            gaps,
        ),
        Table(
            f"{name}: processors in use, and threads that had to wait for one: the others then wait for them",
            ["streams", *names, "engine's threads waiting", "bare loop's"],
            cpus,
        ),
        *(
            [Table(f"{name}: measurements that were lost", ["why"], [[why] for why in series.lost])]
            if series.lost
            else []
        ),
    ]


def _warning(series: Series) -> str:
    disturbed = [repeat for repeat in series.repeats if repeat.disturbed]
    if not disturbed:
        return ""
    used = sum(repeat.disturbed for n in series.streams for repeat in series.of(n))
    text = (
        f". Others used the machine in {len(disturbed)} of {len(series.repeats)} repeats; {len(disturbed) - used} of "
        "them were left out"
    )
    return f"{text}; {used} were not, for want of better ones: their ratios say little" if used else text


def _record(series: Series) -> dict[str, Any]:
    return {
        "summary": [
            {
                "streams": n,
                "repeats": len(series.of(n)),
                "disturbed": sum(r.disturbed for r in series.of(n)),
                "ratio": asdict(series.ratio(n)),
                "overall_ratio": asdict(series.overall_ratio(n)),
                "bare_tokens_per_s": Middle.of([r.bare.tokens_per_s for r in series.of(n)]).median,
                "edged_tokens_per_s": series.rate(n),
            }
            for n in series.streams
        ],
        "repeats": [
            {
                "streams": r.streams,
                "tokens": r.tokens,
                "bare": _figures(r.bare),
                "edged": _figures(r.node),
                "turnover": _figures(r.turnover),
                "processors": {name: round(value, 4) for name, value in r.cpus.items()},
                "waiting": {name: round(value, 4) for name, value in r.waits.items()},
            }
            for r in series.repeats
        ],
        "lost": list(series.lost),
    }


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        name: asdict(Spread.of(value)) if isinstance(value, list) else round(value, 3)
        for name, value in asdict(figures).items()
    }
