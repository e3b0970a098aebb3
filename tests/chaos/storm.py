"""A seeded storm over real parts: requests of all sorts, and everything breaking meanwhile.

`python -m tests.chaos.storm --requests 1000 --faults 100 --seed 7` is what `make chaos` runs: it prints a table, and
ends with 1 where anything was lost or wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random

from edged.wire.topics import Kind
from tests.chaos.consumer import PATIENCE_S, Consumer
from tests.chaos.exchange import Exchange
from tests.chaos.faults import KINDS, Fault
from tests.chaos.figures import Figures
from tests.chaos.stage import Stage, resident_kib, stage

#: Consumers, and requests that are under way at the same time.
CONSUMERS, WINDOW = 4, 16
#: When nothing new has come for so long, it is over, seconds. A consumer pokes what is silent more often than that.
STALLED_S = 90.0
_TURN_S = 0.01
#: From its start until the node must be online the first time, seconds.
_ONLINE_S = 60.0
_WORDS = ("the", "river", "keeps", "its", "counsel", "while", "small", "boats", "carry", "lamps", "across", "slow")


class StormError(AssertionError):
    """The run itself failed: nothing moved any more, or the daemon ended by itself."""


def orders(random: Random, count: int) -> Iterator[Exchange]:
    """Requests, mixed: streamed or not, short or long, with the text in the final or not; some cancelled, some paused.

    Some prompts are long enough to be computed aside, and several of them do not fit into the cache together.
    """
    for number in range(count):
        id_ = f"r{number}"
        kind = Kind.ASK if random.random() < 0.2 else Kind.REQ
        words = random.choices(_WORDS, k=random.choice((5, 5, 20, 20, 20, 20, 80, 80, 80, 300, 900)))
        body: dict[str, object] = {
            "prompt": " ".join(words),
            "raw": True,
            "max_tokens": random.choice((1, 8, 16, 16, 24, 48)),
            "priority": random.choice(("low", "normal", "normal", "high")),
        }
        if random.random() < 0.5:
            body["seed"] = random.randrange(1000)
        if kind is Kind.REQ and random.random() < 0.4:
            body["include_text"] = False  # then a hole can only be healed by a replay
        cancel = random.randrange(4) if kind is Kind.REQ and random.random() < 0.1 else None
        pause = random.randrange(4) if kind is Kind.REQ and random.random() < 0.1 else None
        yield Exchange(id_, kind, json.dumps(body).encode(), cancel, pause)


def schedule(random: Random, count: int, kinds: Sequence[str]) -> list[str]:
    """Faults, by kind: in every round each of them once, in another order."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += random.sample(kinds, len(kinds))
    return drawn[:count]


class Storm:
    """One run. Everything happens in the caller's thread, but for paho's and the proxy's."""

    def __init__(
        self,
        parts: Stage,
        consumers: list[Consumer],
        *,
        requests: int,
        faults: int,
        seed: int,
        kinds: Sequence[str] = tuple(KINDS),
    ) -> None:
        self._stage, self._consumers = parts, consumers
        self._seed = seed
        self._random = Random(seed)
        # Of its own: how long the faults take must not change what is asked.
        self._orders = deque(orders(Random(seed + 1), requests))
        self._schedule = deque(schedule(self._random, faults, kinds))
        self._requests, self._faults = requests, faults
        self._happened = dict.fromkeys(kinds, 0)
        self._sent = 0
        self._fault: Fault | None = None
        self._due = 0.0

    def run(self, limit_s: float, tell: Callable[[str], None] = lambda _: None) -> Figures:
        """Do all of it.

        Args:
            limit_s: the most it may take, seconds; what is not answered then is lost.
            tell: gets a line now and then.

        Raises:
            StormError: nothing moves any more, or the daemon ended by itself.
        """
        begun = moved = time.monotonic()
        self._wait_online(begun + _ONLINE_S)
        came = 0
        try:
            while self._done < self._requests or self._schedule or self._fault:
                now = time.monotonic()
                self._turn(now, tell)
                if (all_came := sum(one.came for one in self._consumers)) != came or self._fault:
                    came, moved = all_came, now
                if now - moved > STALLED_S:
                    tell(f"nothing has come for {STALLED_S:.0f} s")
                    break
                if now - begun > limit_s:
                    tell(f"not done within {limit_s:.0f} s")
                    break
                time.sleep(_TURN_S)
        finally:
            if self._fault is not None:
                self._fault.close()
        return Figures(
            seed=self._seed,
            took_s=time.monotonic() - begun,
            faults=self._happened,
            exchanges=[one for consumer in self._consumers for one in consumer.exchanges],
            strays=[what for consumer in self._consumers for what in consumer.wrong],
            memory_kib=resident_kib(self._stage.node.pid),
        )

    @property
    def _done(self) -> int:
        return sum(consumer.done for consumer in self._consumers)

    def _wait_online(self, deadline: float) -> None:
        while any(consumer.state != "online" for consumer in self._consumers):
            if time.monotonic() > deadline:
                raise StormError(f"the node is not online after {_ONLINE_S:.0f} s:\n{self._stage.node.log()[-4000:]}")
            self._check()
            time.sleep(_TURN_S)

    def _check(self) -> None:
        code = self._stage.node.ended
        if code is not None and self._fault is None:
            raise StormError(f"the daemon ended by itself with code {code}:\n{self._stage.node.log()[-4000:]}")

    def _turn(self, now: float, tell: Callable[[str], None]) -> None:
        for consumer in self._consumers:
            consumer.serve()
        self._check()
        self._ask()
        if now < self._due:
            return
        if self._fault is None and self._schedule and self._ripe:
            kind = self._schedule.popleft()
            self._happened[kind] += 1
            self._fault = KINDS[kind](self._stage, self._random)
            tell(f"{self._done:>5} answers, fault {sum(self._happened.values())}: {kind}")
        if self._fault is not None:
            try:
                self._due = now + next(self._fault)
            except StopIteration:
                self._fault = None
                # One in three follows at once, into what the last one left.
                self._due = now + (0 if self._random.random() < 1 / 3 else self._random.uniform(0.2, 1.5))

    @property
    def _ripe(self) -> bool:
        """Whether the requests have come as far as the faults: the one must not end before the other."""
        return self._done >= self._requests * sum(self._happened.values()) // (self._faults + 1) - WINDOW

    def _ask(self) -> None:
        """Send what there is room for; a share of the requests is kept for each fault to come."""
        happened = sum(self._happened.values()) if self._schedule or self._fault else self._faults
        share = self._requests * (happened + 1) // (self._faults + 1) + 1
        while self._orders and self._sent - self._done < WINDOW and self._sent < share:
            self._consumers[self._sent % len(self._consumers)].send(self._orders.popleft())
            self._sent += 1


def storm(
    directory: Path,
    *,
    requests: int,
    faults: int,
    seed: int,
    limit_s: float,
    kinds: Sequence[str] = tuple(KINDS),
    patience_s: float = PATIENCE_S,
    tell: Callable[[str], None] = lambda _: None,
) -> Figures:
    """Build everything, run, and take everything down again.

    Args:
        directory: an empty one; logs, database and journal stay there.
        requests: how many.
        faults: how many.
        seed: of the requests and the faults.
        limit_s: the most it may take, seconds.
        kinds: of faults; all where nothing is said.
        patience_s: of the consumers, seconds; infinite: they ask once and never help.
        tell: gets a line now and then.

    Raises:
        StormError: nothing moves any more, or the daemon ended by itself.
    """
    with stage(directory) as parts, ExitStack() as stack:
        consumers = [
            stack.enter_context(closing(Consumer(f"c{i}", parts.broker.port, parts.node.name, patience_s=patience_s)))
            for i in range(CONSUMERS)
        ]
        return Storm(parts, consumers, requests=requests, faults=faults, seed=seed, kinds=kinds).run(limit_s, tell)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make chaos", description="Break the real thing, and count what is lost.")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of faults; else all")
    parser.add_argument(
        "--patience-s",
        type=float,
        default=PATIENCE_S,
        help="consumers publish again, or ask for a replay, after so many seconds of silence; inf = never, which holds "
        "as long as no broker is killed",
    )
    parser.add_argument("--limit-s", type=float, default=3600.0, help="the most it may take, seconds")
    parser.add_argument("--keep", type=Path, help="an empty directory for logs and databases; else they are removed")
    given = parser.parse_args()

    def tell(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="edged-chaos-") as temporary:
        figures = storm(
            given.keep or Path(temporary),
            requests=given.requests,
            faults=given.faults,
            seed=given.seed,
            limit_s=given.limit_s,
            kinds=given.only,
            patience_s=given.patience_s,
            tell=tell,
        )
    tell(figures.table())
    sys.exit(0 if figures.passed else 1)


if __name__ == "__main__":
    main()
