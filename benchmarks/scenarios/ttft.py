"""Time to first token on an idle node: what MQTT and the daemon add to a bare prefill, and what the cache saves.

Both sides compute the same prompt at the same time, and have the machine in short turns (see `turns.Turns`); the
node's broker has those of the node. That is done twice: while the node still keeps what it computed for a few prompts
before, and when it has had so many with nothing in common that it keeps none of them (`edged.engine.allowance`). For
the cache, a client sends a long prompt whose beginning nobody had yet (cold) and then another that begins alike and
ends differently (warm).
Requests name no `seed`: one with a seed of its own reuses only what keeps its answer the same to the last bit.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from benchmarks.children import Loop, bare_loop
from benchmarks.client import Client, client
from benchmarks.figures import Middle, Spread
from benchmarks.load import Load, Setup, numbers
from benchmarks.node import node
from benchmarks.outcome import Outcome, Table, Verdict, bars
from benchmarks.scene import Scene
from benchmarks.turns import Turns

_SHORT, _SHARED, _TAIL = 64, 512, 16
_REPEATS, _QUICK_REPEATS = 30, 3
_LONG_REPEATS, _QUICK_LONG_REPEATS = 7, 2
#: So many prompts in all, with nothing in common, before the second pairs. Too few in a first look: its cache is kept.
_BEFORE, _QUICK_BEFORE = 65, 4
#: So short that both meet the same machine until the first token; long beside what a turn's beginning costs. Seconds.
_TURN_S = 0.03
_ADDED_MS, _WARM_RATIO = 15.0, 0.25
#: The node is idle only when the other side's threads have come to rest: OpenMP's spin for a while when their work is
#: done. Seconds.
_REST_S = 0.5
_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Pairs:
    """Short prompts on both sides, milliseconds, one value a repeat. `before`: prompts that the node had earlier."""

    before: int
    node_ms: list[float]
    bare_ms: list[float]

    @property
    def added_ms(self) -> Middle:
        """What the node adds to the bare prefill."""
        return Middle.of([ours - bare for ours, bare in zip(self.node_ms, self.bare_ms, strict=True)])


@dataclass(frozen=True, slots=True)
class Ttft(Outcome):
    """Milliseconds, one value a repeat; `cold_ms` and `warm_ms` at the same place belong together.

    Attributes:
        prompt_tokens: of the short prompts.
        long_tokens: of the long prompts.
        cached_tokens: of the warm prompts, as their finals say.
    """

    title: ClassVar[str] = "Time to first token, idle node"

    prompt_tokens: int
    short: list[Pairs]
    long_tokens: int
    cold_ms: list[float]
    warm_ms: list[float]
    cached_tokens: list[int]

    @property
    def warm_ratio(self) -> Middle:
        """TTFT with the beginning in the cache by TTFT without."""
        return Middle.of([warm / cold for warm, cold in zip(self.warm_ms, self.cold_ms, strict=True)])

    def tables(self) -> list[Table]:
        """All of them."""
        return [
            Table(
                "TTFT as the consumer sees it, ms (p50 / p95 / max)",
                ["prompt", "tokens", "bare prefill and first token", "TTFT", "from the cache, tokens", "TTFT by"],
                [
                    *(
                        [
                            *(f"short, after {one.before} others", str(self.prompt_tokens)),
                            *(str(Spread.of(one.bare_ms)), str(Spread.of(one.node_ms))),
                            *("-", f"bare + {one.added_ms} ms"),
                        ]
                        for one in self.short
                    ),
                    ["long, cold", str(self.long_tokens), "-", str(Spread.of(self.cold_ms)), "0", "-"],
                    [
                        *("long, beginning known", str(self.long_tokens), "-", str(Spread.of(self.warm_ms))),
                        *(str(min(self.cached_tokens)), f"cold x {self.warm_ratio}"),
                    ],
                ],
            )
        ]

    def verdicts(self) -> list[Verdict]:
        """Of what is added and what is saved."""
        return [
            *(
                Verdict(
                    f"TTFT of a prompt of {self.prompt_tokens} tokens after {one.before} others, more than its bare "
                    "prefill",
                    one.added_ms.median,
                    _ADDED_MS,
                    "ms",
                )
                for one in self.short
            ),
            Verdict(
                f"TTFT with {_SHARED} tokens of the beginning in the cache by TTFT without",
                self.warm_ratio.median,
                _WARM_RATIO,
            ),
        ]

    def draw(self, axes: Any) -> None:
        """The medians."""
        values = {"long: cold": self.cold_ms, "long: warm": self.warm_ms}
        for one in self.short:
            values |= {f"after {one.before}: bare": one.bare_ms, f"after {one.before}: edged": one.node_ms}
        medians = [Middle.of(one).median for one in values.values()]
        bars(axes, list(values), medians, unit="ms to the first token")


def measure(scene: Scene) -> Ttft:
    """Measure short prompts on both sides, then long ones in pairs.

    Raises:
        BenchmarkError: a request failed.
    """
    form, place = scene.form, scene.place("ttft")
    repeats = _QUICK_REPEATS if scene.quick else _REPEATS
    with node(form.settings, place) as served, bare_loop(Setup.of(form.settings), place) as bare, client(served) as me:
        bare.run(Load(1, 1, 999), patience_s=_PATIENCE_S)
        sides, short, had = {"node": list(served.pids.values()), "bare": [bare.pid]}, [], 0
        for before in (1, _QUICK_BEFORE if scene.quick else _BEFORE):
            for seed in range(2000 + had, 2000 + before):
                me.finish([me.ask(Load(1, 1, seed, numbers=numbers(_SHORT)).prompt(0), 1)])
            found = [_short(me, bare, before + n, sides, node_first=bool(n % 2)) for n in range(repeats)]
            short.append(Pairs(before, [ours for ours, *_ in found], [limit for _, limit, _ in found]))
            had = before + repeats
        long = [_long(me, 1000 + seed) for seed in range(_QUICK_LONG_REPEATS if scene.quick else _LONG_REPEATS)]
    return Ttft(
        prompt_tokens=found[0][2],
        short=short,
        long_tokens=long[0][2],
        cold_ms=[cold for cold, *_ in long],
        warm_ms=[warm for _, warm, *_ in long],
        cached_tokens=[cached for *_, cached in long],
    )


def _short(
    me: Client, bare: Loop, seed: int, sides: dict[str, list[int]], *, node_first: bool
) -> tuple[float, float, int]:
    """TTFT, bare prefill of the same prompt, milliseconds of each side's own time; and its tokens."""
    load = Load(1, 1, seed, numbers=numbers(_SHORT))
    time.sleep(_REST_S)
    with Turns(sides if node_first else dict(reversed(sides.items())), _TURN_S) as turns:
        bare.say(asdict(load))
        asked = me.ask(load.prompt(0), 2)
        me.finish([asked])
        run = bare.hear(_PATIENCE_S)
    ours, theirs = turns.clocks["node"], turns.clocks["bare"]
    ttft_s = ours.at(asked.sent + asked.ttft_ms / 1000) - ours.at(asked.sent)
    limit_s = theirs.at(run["marks"][0]) - theirs.at(run["started"])
    return ttft_s * 1000, limit_s * 1000, asked.final["usage"]["prompt_tokens"]


def _long(me: Client, seed: int) -> tuple[float, float, int, int]:
    """TTFT cold and warm, milliseconds; the prompt's tokens, and how many of the warm one's came from the cache."""
    shared = Load(1, 1, seed, numbers=numbers(_SHARED)).prompt(0)
    tail = Load(1, 1, seed, numbers=numbers(_TAIL))
    cold = me.ask(f"{shared} {tail.prompt(0, 1)}", 2)
    me.finish([cold])
    warm = me.ask(f"{shared} {tail.prompt(0, 2)}", 2)
    me.finish([warm])
    usage = warm.final["usage"]
    return cold.ttft_ms, warm.ttft_ms, usage["prompt_tokens"], usage["cached_tokens"]
