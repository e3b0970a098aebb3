"""What must hold at every moment of a world (docs/protocol.md, sections 3 to 8), checked while it runs."""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edged.core.events import Generate, Log, Publish
from edged.core.records import Ended, NewRequest, Row, Standing, Withdrawn
from edged.wire.errors import ErrorCode

if TYPE_CHECKING:
    from edged.core.brain import Core
    from edged.core.settings import CoreSettings
    from edged.mqtt.outbox import Outbox
    from tests.simulation.broker import Link
    from tests.simulation.clock import Clock
    from tests.simulation.disk import Disk
    from tests.simulation.node import Node

_HEAD = re.compile(rb'\{"id":"([^"]+)","gen":(\d+),"seq":(\d+),')
_FINAL, _ACCEPTED = b'"type":"final"', b'"type":"accepted"'
#: Deaths under a request after which it may be given up: by the engine's own fault, and from outside.
_OWN_DEATHS, _DEATHS = 2, 6
#: Messages of a stream that may be said although too many wait: `accepted`, a `progress`, what the end brings.
_SLACK = 8
_REFUSALS = 512

#: (topic, id, gen)
Place = tuple[str, bytes, int]


class Broken(AssertionError):  # noqa: N818 - the word says it
    """A promise was not kept."""


class Checks:
    """Sees everything, and objects.

    Attributes:
        disk: the journal's.
        trace: what happened, one line each; None where that is not wanted.
        refused: answers of generation 0, by the correlation data of what they refuse.
        deaths: how often something died under a request, by uid; `own_deaths`: by the engine's own fault.
        reasons: what the world did that may end requests: words, and codes of errors.
        abandoned: ids of the requests whose replies the broker did not want.
        put_off: how many messages it did not take, by id.
        got: the `seq` of the messages that it did take.
    """

    def __init__(self, clock: Clock, *, trace: bool) -> None:
        self._clock = clock
        self.disk: Disk
        self.trace: list[str] | None = [] if trace else None
        self.refused: Counter[bytes | None] = Counter()
        self.deaths: Counter[int] = Counter()
        self.own_deaths: Counter[int] = Counter()
        self.reasons: set[str] = set()
        self.abandoned: set[bytes] = set()
        self.put_off: Counter[bytes] = Counter()
        self.got: dict[Place, set[int]] = {}
        self._with_engine: dict[int, None] = {}
        self._begun: dict[int, None] = {}
        self._gifts: Counter[int] = Counter()
        self._gifts_written: Counter[int] = Counter()
        self._published: dict[tuple[str, bytes, int, int], bytes] = {}
        self._top: dict[Place, int] = {}
        self._final: dict[Place, int] = {}
        self._arrivals: dict[Link, deque[int]] = {}
        self._arrival: dict[int, tuple[bytes | None, str]] = {}
        self._number = 0
        self._expected: dict[bytes, int] = {}
        self._keys: dict[tuple[str | None, str], int] = {}
        self._ended: set[int] = set()
        self._patient = False

    def note(self, line: str) -> None:
        """A line for the trace."""
        if self.trace is not None:
            self.trace.append(f"{self._clock.time:9.4f} {line}")

    # --- the daemon's life ---

    def begins_life(self, node: Node) -> None:
        """It starts and has looked into its journal."""
        self.note(f"daemon starts, boot {node.clock.boot_id}")
        self._keys, self._ended, self._expected = {}, set(), {}
        self._gifts.clear()
        self._gifts_written.clear()
        for uid, client, name, _, ended, _ in self.disk.requests():
            self._keys[client, name] = uid
            if ended:
                self._ended.add(uid)
        self._patient = bool(set(self._keys.values()) - self._ended)

    def ends_life(self, node: Node) -> None:
        """It is gone."""
        self.engine_died(outside=True)
        self.note(f"daemon ends{' in order' if node.left else ''}")

    def logs(self, effect: Log) -> None:
        """A line of the log."""
        if self.trace is not None:
            self.note(f"log: {effect.event} {effect.fields}")
        if effect.event == "broker takes no answer there: given up":
            name = str(effect.fields["id"]).rsplit("/", maxsplit=1)[-1].encode()
            self.abandoned.add(name)
            self._expected.pop(name, None)

    # --- the journal ---

    def writes(self, rows: Sequence[Row]) -> None:
        """Rows are in the journal."""
        for row in rows:
            if self.trace is not None:
                self.note(f"row {str(row)[:200]}")
            if isinstance(row, NewRequest):
                key = (row.key.client, row.key.id)
                if key in self._keys:
                    raise Broken(f"request {row.key} starts a second time: uid {self._keys[key]} and now {row.uid}")
                self._keys[key] = row.uid
            elif isinstance(row, Standing):
                self._fares(row)
            elif isinstance(row, Withdrawn):
                self._keys = {key: uid for key, uid in self._keys.items() if uid != row.uid}
            elif isinstance(row, Ended):
                if row.uid in self._ended:
                    raise Broken(f"request {row.uid} ends twice")
                self._ended.add(row.uid)
                self._with_engine.pop(row.uid, None)

    def _fares(self, row: Standing) -> None:
        # A row may be written late: one that says that it waits means nothing if it has been given away again since.
        if row.begun_with is not None:
            self._gifts_written[row.uid] += 1
        elif self._gifts_written[row.uid] >= self._gifts[row.uid]:
            self._with_engine.pop(row.uid, None)
        if row.fruitless > self.deaths[row.uid]:
            raise Broken(f"{row}, and it was there {self.deaths[row.uid]} times when something died")

    # --- what is published ---

    def publishes(self, effect: Publish) -> None:
        """A message is handed to the outbox."""
        head = _HEAD.match(effect.payload)
        if self.trace is not None:
            self.note(f"publish {effect.topic} {effect.payload[:150]!r}")
        if head is None:
            return
        name, gen, seq = head[1], int(head[2]), int(head[3])
        expected = self._expected.pop(name, None)
        if gen == 0:
            self.refused[effect.properties.correlation] += 1
            return
        if expected is not None and seq > expected:
            raise Broken(f"{name!r} was asked for from seq {expected} on, and {seq} comes next")
        self._is_safe(effect, gen)
        self._is_next((effect.topic, name, gen), seq, effect.payload)

    def _is_safe(self, effect: Publish, gen: int) -> None:
        """It is written, and its request and its generation survive a power cut."""
        uid = self.disk.said.get(effect.payload)
        what = f"{effect.topic} {effect.payload[:200]!r}"
        if uid is None:
            raise Broken(f"published before it is in the journal: {what}")
        if not self.disk.is_durable(uid):
            raise Broken(f"published before its request survives a power cut: {what}")
        if not self.disk.is_durable(uid, gen):
            raise Broken(f"published before its generation survives a power cut: {what}")

    def _is_next(self, place: Place, seq: int, payload: bytes) -> None:
        """It is what it was before, or the next one."""
        topic, name, gen = place
        before = self._published.setdefault((*place, seq), payload)
        if before != payload:
            raise Broken(f"two messages for gen {gen}, seq {seq} of {topic}: {before!r} and {payload!r}")
        top, is_final = self._top.get(place, -1), _FINAL in payload[:120]
        if seq > top + 1 and name not in self.abandoned:  # of which a replay may be from anywhere
            raise Broken(f"seq {seq} of {topic}, gen {gen}, is published, and nothing between it and {top} ever was")
        if seq == top + 1:
            self._top[place] = seq
            if (seq == 0) != (_ACCEPTED in payload[:200]) and not (seq == 0 and is_final):
                raise Broken(f"{topic}: `accepted` is seq 0 and nothing else is: {payload[:200]!r}")
        if seq > self._final.get(place, seq) or (is_final and self._final.setdefault(place, seq) != seq):
            raise Broken(f"after the final of {topic}, gen {gen}, or a second one: {payload[:200]!r}")

    @staticmethod
    def sent(*, ready: bool) -> None:
        """A message leaves the outbox."""
        if not ready:
            raise Broken("a message is sent while there is no connection")

    def broker_has(self, topic: str, payload: bytes) -> None:
        """The broker has taken a message."""
        if (head := _HEAD.match(payload)) is None:
            return
        got, seq = self.got.setdefault((topic, head[1], int(head[2])), set()), int(head[3])
        if seq > len(got) and not self.put_off[head[1]]:
            raise Broken(f"the broker has seq {seq} of {topic}, and of those before it only {sorted(got)}")
        got.add(seq)

    def broker_refuses(self, payload: bytes, code: int) -> None:
        """The broker has not."""
        if (head := _HEAD.match(payload)) is not None:
            self.note(f"PUBACK {code:#x} for {payload[:80]!r}")
            self.put_off[head[1]] += 1

    # --- what comes in ---

    def arrived(self, link: Link, correlation: bytes | None, topic: str) -> int:
        """The daemon has a message; the number to name it by."""
        self._number += 1
        self.note(f"arrived {topic} {correlation!r} as {self._number}")
        self._arrivals.setdefault(link, deque()).append(self._number)
        self._arrival[self._number] = (correlation, topic)
        return self._number

    def acknowledges(self, link: Link, number: int) -> None:
        """The daemon takes the responsibility for a message."""
        correlation, topic = self._arrival[number]
        self.note(f"acknowledge {number}")
        if link.session.link is link:  # else it never leaves
            line = self._arrivals[link]
            if not line or line[0] != number:
                raise Broken(
                    f"{topic} ({number}) is acknowledged out of order, or twice; it is the turn of {list(line)}"
                )
            line.popleft()
        is_request = "/req" in topic or "/ask" in topic
        if is_request and not self.disk.has_request(correlation) and not self.refused[correlation]:
            raise Broken(f"{topic} is acknowledged, and would not survive a power cut")

    def asked_for(self, topic: str, payload: bytes) -> None:
        """The core is told of a message: a reply that it asks for begins with seq 0, or where it says."""
        levels = topic.split("/")
        if len(levels) < 5:
            return
        op = json.loads(payload)
        if "prompt" in op or op.get("op") == "replay":
            name = levels[-1].encode()
            self._expected[name] = min(op.get("from_seq", 0), self._expected.get(name, 1 << 53))

    # --- the engine ---

    def gives(self, order: Generate) -> None:
        """A request is on its way to an engine."""
        self._with_engine[order.uid] = self._begun[order.uid] = None
        self._gifts[order.uid] += 1

    def begins(self, order: Generate, tokens: tuple[int, ...], *, busy: bool) -> None:
        """An engine begins with a request."""
        self.note(f"generate {order.uid}, {len(order.generated)} tokens are there")
        if busy:
            raise Broken(f"request {order.uid} is given to an engine that has it, or has no place")
        if order.generated != tokens[: len(order.generated)]:
            raise Broken(f"request {order.uid} goes on after tokens that are not its own: {order.generated}")

    def engine_is_ready(self) -> None:
        """The core hears that the model is loaded."""
        self._patient = True

    def engine_died(self, *, outside: bool, error: ErrorCode | None = None) -> None:
        """The core hears of it, or dies with it: whoever the engine was given.

        That it cannot be loaded ends only what was asked for before it ever was: here it never takes a whole minute.
        """
        if error is not None and not self._patient:
            self.reasons.add(str(error))
        for uid in self._with_engine:
            self.deaths[uid] += 1
            self.own_deaths[uid] += not outside
        self._with_engine.clear()

    def power_is_cut(self) -> None:
        """That a request had got away from its engine may be forgotten, so it counts for all that ever began."""
        self.deaths.update(list(self._begun))

    def uid(self, client: str | None, name: str) -> int:
        """The number of a request."""
        return self._keys.get((client, name), 0)

    def may_be_given_up(self, uid: int) -> bool:
        """Whether things died under a request so often that it may be called their cause."""
        return self.own_deaths[uid] >= _OWN_DEATHS or self.deaths[uid] >= _DEATHS

    # --- the end ---

    def recorded(self, uid: int) -> list[bytes]:
        """All messages of the last generation of a request that has ended, as the journal has them."""
        found = self.disk.past(uid)
        return [payload for _, payload in self.disk.journal.messages(uid, *found)]

    def is_with_broker(self, uid: int, name: str) -> None:
        """The broker has had every message of the last generation, unless it did not want them."""
        gen, first, count = self.disk.past(uid)
        if name.encode() in self.abandoned:
            return
        got: set[int] = set()
        for (_, id_, of), seqs in self.got.items():
            if (id_, of) == (name.encode(), gen):
                got |= seqs
        if missing := sorted(set(range(first, count)) - got):
            raise Broken(f"the broker never got {missing} of {name}, gen {gen}")

    # --- bounds ---

    def bounds(self, core: Core, outbox: Outbox, settings: CoreSettings) -> None:
        """Nothing grows without bound."""
        parts = core._parts
        courier = parts.courier
        places = 4  # of the engine, at most
        if len(parts.queue) > settings.max_queue + places:
            raise Broken(f"{len(parts.queue)} requests wait, and {settings.max_queue} may")
        most = 3 * (settings.max_queue + places)
        if len(parts.streams) > most or len(courier._deliveries) > 2 * most:
            raise Broken(f"{len(parts.streams)} streams, {len(courier._deliveries)} on their way")
        if (
            len(outbox)
            > len(courier._deliveries) * settings.max_waiting + courier.copies * settings.max_waiting + _REFUSALS
        ):
            raise Broken(f"{len(outbox)} messages in the outbox")
        for delivery in courier._deliveries.values():
            if delivery.unconfirmed > settings.max_waiting:
                raise Broken(f"{delivery.unconfirmed} messages of {delivery.key} on their way")
            if len(delivery._fresh) > settings.max_waiting + _SLACK:
                raise Broken(f"{len(delivery._fresh)} messages of {delivery.key} in memory")
        if len(courier._rows) > (1 + len(parts.streams) + len(courier._deliveries)) * (settings.max_waiting + _SLACK):
            raise Broken(f"{len(courier._rows)} rows wait to be written")
