"""What consumers get through MQTT, beside what llama.cpp can do at best on the same machine at the same time.

`make bench` runs it. Both sides stay loaded and take turns, so that what else the machine does meets them alike, and
the ratio of the two is taken for each pair of neighbouring measurements. A side that waits uses no processor.

What is compared: so many sequences of the same lengths, from the same prompts, with the same samplers, sampled to the
same number of tokens; counted is the time in which all of them generate (see `figures.Figures`). With the node, the
prompts of late streams are computed while early ones generate already, by design; so decoding alone is counted, where
all streams run and the context is equally deep on both sides, and beside it everything from the first request to the
last token.

Settings of the environment (EDGED_MODELS, EDGED_STREAM__FLUSH_MS, …) and $EDGED_CONFIG count, for both sides where both
have them: `EDGED_MODELS='[{"path": "/srv/other.gguf"}]' make bench` measures another model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds its own directory there, not ours

from benchmarks import report
from benchmarks.bench import measure
from benchmarks.figures import BenchmarkError
from deploy.stack import StackError, signals_end_the_block
from edged.config.errors import ConfigError
from edged.engine.files import ModelFileError


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", description="Throughput and latency through MQTT, and the limit."
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8], metavar="N", help="default: 1 4 8")
    parser.add_argument("--repeats", type=int, help="of every number of streams (default: 5)")
    parser.add_argument("--seconds", type=float, help="roughly, of one measurement (default: 5)")
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="spent in all on waiting until nothing else uses the machine, and on measuring again what was disturbed "
        "(default: 90)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one repeat of 3 seconds and no patience, for a first look"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them there")
    args = parser.parse_args(argv)
    args.repeats = args.repeats or (1 if args.quick else 5)
    args.patience = args.patience if args.patience is not None else 0.0 if args.quick else 90.0
    args.seconds = args.seconds or (3.0 if args.quick else 5.0)
    if min(args.streams) < 1 or args.repeats < 1 or args.seconds <= 0:
        parser.error("--streams, --repeats and --seconds are greater than 0")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; returns the exit code."""
    args = arguments(argv)
    signals_end_the_block()
    try:
        with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
            result = measure(
                args.streams,
                repeats=args.repeats,
                seconds=args.seconds,
                patience_s=args.patience,
                directory=Path(name),
            )
    except (BenchmarkError, StackError, ConfigError, ModelFileError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    print(report.text(result))
    if args.json:
        args.json.write_text(report.to_json(result) + "\n", encoding="utf-8")
    if args.plot:
        report.plot(result, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
