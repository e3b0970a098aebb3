"""What the figures of a run look like: tables for people, JSON for programs, a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.figures import Figures, Middle, Spread, ratio
from benchmarks.machine import QUIET


@dataclass(frozen=True, slots=True)
class Repeat:
    """The measurements that belong together.

    Attributes:
        tokens: of each answer.
        turnover: of the node, with requests that come one after the other.
        cpus: processors in use while the node was measured; `bare_others` while the bare loop was.
    """

    streams: int
    tokens: int
    bare: Figures
    node: Figures
    turnover: Figures
    cpus: dict[str, float]

    @property
    def disturbed(self) -> bool:
        """Whether other processes took so much from one side that the ratio says little."""
        return max(self.cpus["others"], self.cpus["bare_others"]) > QUIET


@dataclass(frozen=True, slots=True)
class Result:
    """A whole run: what was measured on, and what came of it."""

    machine: str
    model: str
    settings: dict[str, Any]
    repeats: list[Repeat]

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


def text(result: Result) -> str:
    """The tables, in Markdown."""
    by_streams = [(n, result.of(n)) for n in result.streams]
    throughput = [
        [
            str(n),
            str(repeats[0].tokens),
            f"{median(r.bare.tokens_per_s for r in repeats):.1f}",
            f"{median(r.node.tokens_per_s for r in repeats):.1f}",
            _middle(result.ratio(n)),
            _middle(result.overall_ratio(n)),
        ]
        for n, repeats in by_streams
    ]
    gaps = [
        [
            str(n),
            _spread(g for r in repeats for g in r.bare.gaps_ms),
            _spread(g for r in repeats for g in r.node.gaps_ms),
            f"{fmean(v for r in repeats for v in r.node.node_itl_ms):.0f}",
            f"{max(v for r in repeats for v in r.node.node_p95_itl_ms):.0f}",
            f"{max(v for r in repeats for v in r.node.node_max_itl_ms):.0f}",
        ]
        for n, repeats in by_streams
    ]
    turnover = [
        [
            str(n),
            f"{median(r.turnover.tokens_per_s for r in repeats):.1f}",
            _spread(v for r in repeats for v in r.turnover.later_ttft_ms),
            str(sum(len(r.turnover.later_ttft_ms) for r in repeats)),
            _spread(v for r in repeats for v in r.node.ttft_ms),
            _spread(g for r in repeats for g in r.turnover.gaps_ms),
            f"{max(v for r in repeats for v in r.turnover.node_max_itl_ms):.0f}",
        ]
        for n, repeats in by_streams
    ]
    names = [name for name in result.repeats[0].cpus if name != "bare_others"]
    cpus = [
        [str(n), *(f"{median(r.cpus[name] for r in repeats):.3f}" for name in (*names, "bare_others"))]
        for n, repeats in by_streams
    ]
    p = "p50 / p95 / max"
    return "\n".join(
        [
            result.machine,
            f"{result.model}; {', '.join(f'{name} {value}' for name, value in result.settings.items())}",
            "",
            "All streams generate: tokens/s of all together, medians; ratios edged / bare loop, median (least to most)",
            "",
            *_table(
                ["streams", "tokens each", "bare loop", "edged", "ratio", "ratio, prompts and round trip included"],
                throughput,
            ),
            "",
            f"Gaps, ms ({p})",
            "",
            *_table(
                [
                    *("streams", "bare loop: between tokens", "consumer: between chunks"),
                    *("node: mean ITL", "worst p95 ITL", "max ITL"),
                ],
                gaps,
            ),
            "",
            f"Each client asks again when its answer has ended; TTFT and gaps as the consumer sees them, ms ({p})",
            "",
            *_table(
                ["streams", "tokens/s", "TTFT", "requests", "TTFT, all at once", "between chunks", "node: max ITL"],
                turnover,
            ),
            "",
            "Processors in use while all generate",
            "",
            *_table(["streams", *names, "others beside the bare loop"], cpus),
            *_warnings(result),
        ]
    )


def _warnings(result: Result) -> list[str]:
    disturbed = sum(repeat.disturbed for repeat in result.repeats)
    if not disturbed:
        return []
    used = sum(repeat.disturbed for n in result.streams for repeat in result.of(n))
    most = max(r.cpus[name] for r in result.repeats for name in ("others", "bare_others"))
    text = (
        f"In {disturbed} of {len(result.repeats)} repeats other processes used more than {QUIET} processors (at most "
        f"{most:.2f}). {disturbed - used} of them were left out"
    )
    return ["", f"{text}; {used} were not, for want of better ones: their ratios say little." if used else f"{text}."]


def _middle(value: Middle) -> str:
    return f"{value.median:.3f} ({value.least:.3f} to {value.most:.3f})"


def _spread(values: Any) -> str:
    spread = Spread.of(values)
    return f"{spread.p50:.0f} / {spread.p95:.0f} / {spread.most:.0f}" if spread.count else "-"


def _table(head: list[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * (width - 1) + ":" for width in widths], *rows]
    return [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]


def to_json(result: Result) -> str:
    """Everything: the medians by number of streams, and each repeat with its spreads."""
    return json.dumps(
        {
            "machine": result.machine,
            "model": result.model,
            "settings": result.settings,
            "summary": [
                {
                    "streams": n,
                    "repeats": len(result.of(n)),
                    "disturbed": sum(r.disturbed for r in result.of(n)),
                    "ratio": asdict(result.ratio(n)),
                    "overall_ratio": asdict(result.overall_ratio(n)),
                    "bare_tokens_per_s": median(r.bare.tokens_per_s for r in result.of(n)),
                    "edged_tokens_per_s": median(r.node.tokens_per_s for r in result.of(n)),
                    "ttft_ms": asdict(Spread.of(v for r in result.of(n) for v in r.turnover.later_ttft_ms)),
                    "burst_ttft_ms": asdict(Spread.of(v for r in result.of(n) for v in r.node.ttft_ms)),
                    "gap_ms": asdict(Spread.of(v for r in result.of(n) for v in r.node.gaps_ms)),
                }
                for n in result.streams
            ],
            "repeats": [
                {
                    "streams": r.streams,
                    "tokens": r.tokens,
                    "bare": _figures(r.bare),
                    "edged": _figures(r.node),
                    "turnover": _figures(r.turnover),
                    "processors": {name: round(value, 4) for name, value in r.cpus.items()},
                }
                for r in result.repeats
            ],
        },
        indent=2,
    )


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        name: asdict(Spread.of(value)) if isinstance(value, list) else round(value, 3)
        for name, value in asdict(figures).items()
    }


def plot(result: Result, file: Path) -> None:
    """Draw throughput beside the limit, and how even the chunks come, as PNG."""
    import matplotlib as mpl  # noqa: PLC0415 - slow, and only --plot wants it

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    drawing, (rates, gaps) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    places = range(len(result.streams))
    labels = [str(n) for n in result.streams]
    for shift, name, color in ((-0.2, "bare", "0.75"), (0.2, "node", "tab:blue")):
        middles = [Middle.of([getattr(r, name).tokens_per_s for r in result.of(n)]) for n in result.streams]
        rates.bar(
            [place + shift for place in places],
            [m.median for m in middles],
            0.4,
            yerr=([m.median - m.least for m in middles], [m.most - m.median for m in middles]),
            color=color,
            label={"bare": "bare llama.cpp loop", "node": "edged, through MQTT"}[name],
        )
    for place, n in zip(places, result.streams, strict=True):
        rates.annotate(
            f"{result.ratio(n).median:.2f}", (place + 0.2, 0), (0, 4), textcoords="offset points", ha="center"
        )
    rates.set(xticks=places, xticklabels=labels, xlabel="streams", ylabel="tokens/s, all streams together")
    rates.set_title("Throughput, and the part of the limit that is reached")
    rates.legend()
    for n in result.streams:
        values = sorted(g for r in result.of(n) for g in r.node.gaps_ms)
        gaps.plot(values, [(i + 1) / len(values) for i in range(len(values))], label=f"{n} streams")
    gaps.set(xlabel="ms from one chunk of a stream to the next", ylabel="part of the chunks", ylim=(0, 1))
    gaps.set_xlim(left=0)
    gaps.set_title("How even the text comes")
    gaps.legend()
    drawing.suptitle(f"{result.model}\n{result.machine}", fontsize=8)
    drawing.savefig(file, dpi=120)
    plt.close(drawing)
