"""What consumers get through MQTT, beside what llama.cpp can do at best on the same machine in the same run.

`make bench` runs it: the scenarios of `benchmarks/scenarios`, or those that `--only` names. Each starts a broker and a
daemon of its own. A scenario that fails is reported and the rest goes on; the exit code is 1 then. A figure that is not
as asked is a verdict, and no failure: what is asked is asked of a quiet machine.

Settings of the environment (EDGED_MODELS, EDGED_STREAM__FLUSH_MS, …) and $EDGED_CONFIG count, for both sides where both
have them: `EDGED_MODELS='[{"path": "/srv/other.gguf"}]' make bench` measures another model.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds its own directory there, not ours

from benchmarks import report
from benchmarks.figures import BenchmarkError
from benchmarks.machine import await_quiet, description
from benchmarks.outcome import Outcome
from benchmarks.report import Run
from benchmarks.scenarios import (
    cancel,
    crowd,
    death,
    highlevel,
    journal,
    memory,
    mixed,
    neighbours,
    overhead,
    soak,
    throughput,
    ttft,
)
from benchmarks.scene import Scene
from deploy.stack import StackError, find, signals_end_the_block
from edged.config import load
from edged.config.errors import ConfigError
from edged.engine.cores import usable_cores
from edged.engine.files import ModelFileError

SCENARIOS: dict[str, Callable[[Scene], Outcome]] = {
    "throughput": throughput.measure,
    "crowd": crowd.measure,
    "overhead": overhead.measure,
    "ttft": ttft.measure,
    "mixed": mixed.measure,
    "cancel": cancel.measure,
    "memory": memory.measure,
    "soak": soak.measure,
    "death": death.measure,
    "journal": journal.measure,
    "neighbours": neighbours.measure,
    "highlevel": highlevel.measure,
}
#: How long a quiet machine is waited for before a scenario, seconds.
_QUIET_S = 10.0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="What consumers get through MQTT, and the limit. All of it takes half an hour and more.",
    )
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="N", help="throughput: default 1 2 4 8 16"
    )
    parser.add_argument("--repeats", type=int, help="of every number of streams (default: 2)")
    parser.add_argument("--seconds", type=float, help="roughly, of one measurement of throughput (default: 3)")
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="spent for each file on waiting until nothing else uses the machine, and on measuring throughput again "
        "where others disturbed it (default: 45)",
    )
    parser.add_argument("--as-it-is", action="store_true", help="measure the file alone, and not its Q4_0 form as well")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="for a first look: one repeat, no patience, everything as short as it can be",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them there")
    args = parser.parse_args(argv)
    args.repeats = args.repeats or (1 if args.quick else 2)
    args.patience = args.patience if args.patience is not None else 0.0 if args.quick else 45.0
    args.seconds = args.seconds or (2.0 if args.quick else 3.0)
    if min(args.streams) < 1 or args.repeats < 1 or args.seconds <= 0:
        parser.error("--streams, --repeats and --seconds are greater than 0")
    return args


def scene(args: argparse.Namespace, directory: Path) -> Scene:
    """The circumstances, as the arguments and the environment want them.

    Raises:
        BenchmarkError: several models are configured.
        ConfigError, ModelFileError: the environment's settings cannot be used.
    """
    empty = directory / "edged.toml"
    empty.touch()
    settings = load(Path(os.environ.get("EDGED_CONFIG") or empty))
    if len(settings.models) > 1:
        raise BenchmarkError(f"{len(settings.models)} models are configured: their processes would share the machine")
    made = Scene(
        settings=settings,
        directory=directory,
        streams=tuple(sorted(set(args.streams))),
        repeats=args.repeats,
        seconds=args.seconds,
        patience_s=args.patience,
        quick=args.quick,
        repacked=not args.as_it_is,
    )
    made.form  # noqa: B018 - says now, and not in every scenario, that there is no such file
    return made


def carry_out(scenarios: dict[str, Callable[[Scene], Outcome]], it: Scene, run: Run) -> None:
    """Run scenarios one after the other; one that fails is noted in the run."""
    for name, measure in scenarios.items():
        if not it.quick:
            await_quiet(min(_QUIET_S, it.patience_s))
        started = time.monotonic()
        try:
            outcome = measure(it)
            outcome.verdicts()  # figures of which nothing can be said are this scenario's failure, and not the run's
            run.outcomes[name] = outcome
        except (BenchmarkError, StackError) as error:
            run.failures[name] = str(error)
        except Exception as error:  # noqa: BLE001 - a mistake here must not cost the minutes of all other scenarios
            run.failures[name] = f"{type(error).__name__}: {error}"
        ended = "failed" if name in run.failures else "done"
        print(f"{name}: {ended} after {time.monotonic() - started:.0f} s", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; returns the exit code."""
    args = arguments(argv)
    signals_end_the_block()
    try:
        with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
            it = scene(args, Path(name))
            model = it.settings.models[0]
            run = Run(
                machine=f"{description()}; {_mosquitto()}",
                model=it.form.file.name,
                settings={"threads": model.threads or usable_cores(), "context": model.context, "repeats": it.repeats},
            )
            carry_out({name: SCENARIOS[name] for name in args.only or SCENARIOS}, it, run)
    except (BenchmarkError, StackError, ConfigError, ModelFileError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    print(report.text(run))
    if args.json:
        args.json.write_text(report.to_json(run) + "\n", encoding="utf-8")
    if args.plot:
        report.plot(run, args.plot)
    return 1 if run.failures else 0


def _mosquitto() -> str:
    """Its name and version, as it says them."""
    said = subprocess.run([find("mosquitto"), "-h"], capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0].replace(" version", "").strip()


if __name__ == "__main__":
    sys.exit(main())
