"""The other side: consumers ask, lose what they are sent, come back, and put the replies together with what is real."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field

from edged.wire.assembly import Reassembler
from edged.wire.errors import ErrorCode
from edged.wire.messages import Accepted, Chunk, Final, parse_reply
from edged.wire.stream import AssemblyError, Result
from tests.simulation.broker import Broker, Link, Message
from tests.simulation.checks import Broken, Checks
from tests.simulation.clock import Clock
from tests.simulation.engine import Script, answer

BASE = "edged/v1/n"


@dataclass(slots=True)
class Heard:
    """The reply to one request, as far as it has come.

    Attributes:
        id: the request's.
        refusals: codes of the answers in generation 0.
    """

    id: str
    assembler: Reassembler
    refusals: list[ErrorCode] = field(default_factory=list)
    tokens: int = 0
    result: Result | None = None


@dataclass(slots=True, eq=False)
class Asked:
    """A request of a consumer's.

    Attributes:
        id: None where the daemon makes one.
        rival: another body under an id that is taken.
        since: when it was published for the first time, real seconds.
        heard: by id; more than one only where there is no id and the broker doubled it.
    """

    client: str | None
    id: str | None
    message: Message
    reply_topic: str | None
    prompt: str
    script: Script
    max_tokens: int
    seed: int | None
    timeout_s: float | None
    only_final: bool
    rival: bool = False
    since: float | None = None
    heard: dict[str, Heard] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Its PATH, where it has an id."""
        return self.id if self.client is None else f"{self.client}/{self.id}"  # type: ignore[return-value]  # asked for where there is one only

    @property
    def is_answered(self) -> bool:
        """Whether all that was heard of it is complete."""
        return bool(self.heard) and all(heard.result is not None for heard in self.heard.values())


class Consumer:
    """One client of the broker with its requests.

    Attributes:
        asked: by correlation data.
        by_id: the same by id, rivals beside each other.
        cancelled: ids that were cancelled.
    """

    def __init__(self, name: str, client: str | None, broker: Broker, clock: Clock, checks: Checks) -> None:
        self.name = name
        self.client = client
        self.asked: dict[bytes, Asked] = {}
        self.by_id: dict[str, list[Asked]] = {}
        self.cancelled: set[str] = set()
        self.link: Link | None = None
        self._broker = broker
        self._clock = clock
        self._checks = checks
        self._unconfirmed: OrderedDict[int, Message] = OrderedDict()
        self._mid = 0

    def wants(self, topic: str) -> bool:
        """Its subscriptions."""
        if topic.startswith(f"reply/{self.name}/"):
            return True
        head = f"{BASE}/reply/"
        if not topic.startswith(head):
            return False
        rest = topic[len(head) :]
        return rest.startswith(f"{self.client}/") if self.client else "/" not in rest

    # --- the connection ---

    def connect(self) -> None:
        """Come back, if the broker is there."""
        if self.link is None:
            self.link = self._broker.connect(self.name, self)

    def leave(self) -> None:
        """Go away without a word."""
        if self.link is not None:
            link, self.link = self.link, None
            link.cut(late=False)

    def connected(self, link: Link, *, session_present: bool) -> None:  # noqa: ARG002
        for mid, message in self._unconfirmed.items():
            link.publish(mid, message)

    def ended(self, link: Link) -> None:
        if self.link is link:
            self.link = None

    def confirmed(self, link: Link, mid: int, code: int) -> None:  # noqa: ARG002
        self._unconfirmed.pop(mid, None)

    def publish(self, message: Message) -> None:
        """QoS 1: again and again until the broker has it."""
        self._mid += 1
        self._unconfirmed[self._mid] = message
        if self.link is not None:
            self.link.publish(self._mid, message)

    # --- asking ---

    def ask(self, asked: Asked) -> None:
        """Publish a request, or the same once more."""
        if asked.since is None:
            asked.since = self._clock.time
            assert asked.message.correlation is not None
            self.asked[asked.message.correlation] = asked
            if asked.id is not None:
                self.by_id.setdefault(asked.id, []).append(asked)
                asked.heard[asked.id] = Heard(asked.id, Reassembler(asked.id))
        self.publish(asked.message)

    def control(self, asked: Asked, name: str, op: dict[str, object]) -> None:
        """Publish a control message about a request."""
        if op["op"] == "cancel":
            self.cancelled.add(name)
        path = name if asked.client is None else f"{asked.client}/{name}"
        self.publish(Message(f"{BASE}/ctl/{path}", json.dumps(op).encode()))

    def want(self, asked: Asked, heard: Heard) -> None:
        """Ask again for what is missing of a request, or for all of it where nothing has come."""
        missing = heard.assembler.missing
        if heard.assembler.gen is None or missing is None:
            if asked.id is not None:
                self.ask(asked)
            else:
                self.control(asked, heard.id, {"op": "replay"})
            return
        # A generation that is over is not replayed: then the last one is, from its beginning.
        behind = ErrorCode.UNKNOWN_REQUEST in heard.refusals
        heard.refusals.clear()
        which: dict[str, object] = {} if behind else {"from_seq": missing.from_seq, "gen": heard.assembler.gen}
        self.control(asked, heard.id, {"op": "replay", **which})

    @staticmethod
    def know(asked: Asked, name: str) -> None:
        """Somebody tells the id that the daemon made for a request."""
        asked.heard.setdefault(name, Heard(name, Reassembler(name)))

    # --- hearing ---

    def message(self, link: Link, message: Message, packet_id: int, *, duplicate: bool) -> None:  # noqa: ARG002
        reply = parse_reply(message.payload)
        self._checks.note(f"{self.name} hears {message.topic} {message.payload[:80]!r}")
        if reply.gen == 0:
            self._refused(reply.id, message.correlation, reply)
        else:
            asked = self.asked.get(message.correlation or b"")
            if asked is None:
                raise Broken(
                    f"{message.topic}: the correlation data is {message.correlation!r}, which nobody asked with"
                )
            self._heard(asked, reply.id, message)
        link.acknowledge(packet_id)

    def _refused(self, name: str, correlation: bytes | None, reply: object) -> None:
        if not isinstance(reply, Final) or reply.error is None:
            raise Broken(f"generation 0 is no refusal: {reply}")
        asked = self.asked.get(correlation or b"")
        about = [asked] if asked is not None else list(self.asked.values())
        for one in about:
            if (heard := one.heard.get(name)) is not None:
                heard.refusals.append(reply.error.code)

    def _heard(self, asked: Asked, name: str, message: Message) -> None:
        expected = asked.reply_topic or f"{BASE}/reply/{asked.client + '/' if asked.client else ''}{name}"
        if message.topic != expected or (asked.id is not None and asked.id != name):
            raise Broken(f"{name!r} is answered on {message.topic}, not on {expected}")
        heard = asked.heard.setdefault(name, Heard(name, Reassembler(name)))
        if heard.result is not None:
            return
        try:
            events = heard.assembler.feed(message.payload)
        except AssemblyError as error:
            raise Broken(f"{message.topic}: {error}") from None
        if heard.assembler.result is not None:
            heard.result = heard.assembler.result
            self.judge(asked, heard.result)
        if self._checks.trace is not None and events:
            self._checks.note(f"{self.name} has {[type(event).__name__ for event in events]} of {name}")

    def replayed(self, asked: Asked, payloads: list[bytes]) -> None:
        """All messages of a last generation, as they were said: they are complete, and bring the same."""
        assembler = Reassembler()
        tokens = accepted = 0
        for payload in payloads:
            message = parse_reply(payload)
            assembler.feed(message)
            tokens += message.n if isinstance(message, Chunk) else 0
            accepted += isinstance(message, Accepted)
        result = assembler.result
        if result is None or result.healed:
            raise Broken(f"{asked.prompt}: what is replayed is not complete: {payloads}")
        self.judge(asked, result)
        ends_at_once = len(payloads) == 1 and result.finish_reason == "error"  # it is not run again after a power cut
        streams = not asked.only_final and not ends_at_once
        if accepted != streams or (asked.only_final and len(payloads) != 1):
            raise Broken(f"{asked.prompt}: {accepted} `accepted`, {len(payloads)} messages")
        if not asked.only_final and result.final.finish_reason == "stop" and tokens != asked.script.length:
            raise Broken(f"{asked.prompt}: its chunks have {tokens} tokens, and the answer {asked.script.length}")

    def judge(self, asked: Asked, result: Result) -> None:
        """Whether a request may end like that."""
        final, checks = result.final, self._checks
        where = f"{asked.prompt} ({result.id}, gen {result.gen})"
        if asked.seed is not None and final.seed != asked.seed:
            raise Broken(f"{where}: sampled with seed {final.seed}, not with {asked.seed}")
        assert final.seed is not None
        pieces = answer(asked.prompt, final.seed, asked.script.length)[1]
        whole = "".join(pieces)
        if final.finish_reason == "stop":
            fine = result.text == whole and asked.script.length <= asked.max_tokens
        elif final.finish_reason == "length":
            fine = result.text == "".join(pieces[: asked.max_tokens]) and asked.max_tokens <= asked.script.length
        else:
            fine = whole.startswith(result.text) and self._has_reason(asked, result)
        if not fine:
            why = f"{final.finish_reason} {final.error.code if final.error else ''}".rstrip()
            raise Broken(f"{where}: ends with {why} and {result.text!r}, and its answer is {whole!r}")
        checks.note(f"{self.name} has all of {where}: {final.finish_reason}")

    def _has_reason(self, asked: Asked, result: Result) -> bool:
        final, checks = result.final, self._checks
        if final.finish_reason == "cancelled":
            return result.id in self.cancelled or result.id.encode() in checks.abandoned or "drained" in checks.reasons
        if final.error is None:
            return False
        match final.error.code:
            case ErrorCode.TIMEOUT:
                passed = self._clock.time - (asked.since or 0.0)
                in_time = asked.timeout_s is not None and passed >= asked.timeout_s - 0.01
                return in_time or {"reboot", "jump"} <= checks.reasons
            case ErrorCode.CRASHED:
                return asked.script.poison_at is not None or checks.may_be_given_up(checks.uid(asked.client, result.id))
            case code:
                return str(code) in checks.reasons
