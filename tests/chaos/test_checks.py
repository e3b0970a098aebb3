"""The storm's own judgement: what it must call wrong or lost, it does. A storm that cannot fail proves nothing."""

from __future__ import annotations

import json
import time
import zlib
from random import Random
from typing import Any

import pytest

from edged.wire.topics import Kind
from tests.chaos.exchange import Exchange
from tests.chaos.faults import KINDS
from tests.chaos.figures import Figures
from tests.chaos.storm import orders, schedule

NOW = 100.0
TEXTS = ("one ", "two ", "three")
WHOLE = "".join(TEXTS)


def message(seq: int, kind: str, *, gen: int = 1, **fields: Any) -> bytes:
    return json.dumps({"id": "r", "gen": gen, "seq": seq, "type": kind, "ts": 1.5, **fields}).encode()


def final(seq: int, said: str = WHOLE, *, reason: str = "length", gen: int = 1, **fields: Any) -> bytes:
    proof = {"chars": len(said), "crc32": zlib.crc32(said.encode())}
    return message(seq, "final", gen=gen, finish_reason=reason, node="n", **{**proof, **fields})


def refusal(code: str, *, retryable: bool, **fields: Any) -> bytes:
    error = {"code": code, "status": 429, "message": "no", "retryable": retryable, **fields}
    return final(0, "", reason="error", gen=0, error=error)


ACCEPTED = message(0, "accepted", node="n", boot=1, model="m", queue_position=0)
CHUNKS = [message(i + 1, "chunk", text=text, n=1) for i, text in enumerate(TEXTS)]
STREAM = [ACCEPTED, *CHUNKS, final(4)]


def fed(*payloads: bytes, kind: Kind = Kind.REQ) -> Exchange:
    exchange = Exchange("r", kind, b"{}")
    for payload in payloads:
        exchange.feed(payload, NOW)
    return exchange


def figures(*exchanges: Exchange, strays: tuple[str, ...] = ()) -> Figures:
    return Figures(7, 1.0, {"cut": 3, "reset": 2}, exchanges, strays, 50_000)


def test_a_whole_stream_is_right() -> None:
    exchange = fed(*STREAM)
    assert exchange.result is not None
    assert exchange.result.text == WHOLE
    assert (exchange.wrong, exchange.duplicates, exchange.gaps, exchange.chunks, exchange.finals) == ([], 0, 0, 3, 1)


def test_copies_and_disorder_are_counted_and_right() -> None:
    exchange = fed(ACCEPTED, CHUNKS[0], CHUNKS[2], CHUNKS[0], CHUNKS[1], CHUNKS[2], final(4), final(4))
    assert (exchange.wrong, exchange.duplicates, exchange.gaps, exchange.finals) == ([], 3, 1, 1)
    assert exchange.result is not None


def test_what_came_only_after_a_replay_is_a_gap_healed() -> None:
    exchange = fed(*STREAM[:3])
    exchange.replay_asked()
    assert json.loads(exchange.replay) == {"op": "replay", "from_seq": 3, "gen": 1}
    for payload in STREAM:
        exchange.feed(payload, NOW)
    assert (exchange.wrong, exchange.duplicates, exchange.gaps, exchange.replays) == ([], 3, 1, 1)
    assert figures(exchange).passed


def test_what_was_said_after_a_replay_was_asked_for_is_none() -> None:
    exchange = fed(*STREAM[:4])
    exchange.replay_asked()
    exchange.feed(final(4, ts=time.time() + 1), NOW)
    assert (exchange.wrong, exchange.gaps) == ([], 0)


@pytest.mark.parametrize(
    ("payloads", "reason"),
    [
        pytest.param([*STREAM, final(5)], "two finals", id="two finals"),
        pytest.param([*STREAM, message(5, "chunk", text="!", n=1)], "after the final", id="more after the final"),
        pytest.param([*STREAM[:2], message(1, "chunk", text="eno ", n=1)], "two different", id="a copy that differs"),
        pytest.param([*STREAM[:4], final(4, WHOLE, crc32=1)], "CRC", id="another crc32"),
        pytest.param([*STREAM[:4], final(4, WHOLE, chars=1)], "characters", id="another length"),
        pytest.param([*STREAM[:3], final(3)], "characters", id="a chunk left out, the numbers dense"),
        pytest.param([ACCEPTED, message(0, "accepted", gen=2, node="n", boot=1, model="m", queue_position=0)],
                     "generation 2", id="begun again"),
        pytest.param([CHUNKS[0], message(0, "chunk", text="", n=0)], "begins with a chunk", id="no accepted"),
        pytest.param([*STREAM[:4], final(4, reason="cancelled")], "nobody asked", id="cancelled by nobody"),
        pytest.param([*STREAM[:4], final(4, reason="error", error={"code": "crashed", "status": 507, "message": "no",
                      "retryable": False})], "crashed", id="an error"),
        pytest.param([refusal("bad_request", retryable=False)], "bad_request", id="refused for good"),
        pytest.param([*STREAM[:2], refusal("unknown_request", retryable=False)], "no more", id="forgotten"),
        pytest.param([b"{"], "not a message", id="not JSON"),
        pytest.param([ACCEPTED.replace(b'"r"', b'"q"')], "'q'", id="of another request"),
    ],
)  # fmt: skip
def test_is_wrong(payloads: list[bytes], reason: str) -> None:
    exchange = fed(*payloads)
    assert any(reason in what for what in exchange.wrong), exchange.wrong
    assert exchange.done
    judged = figures(exchange)
    assert not judged.passed
    assert reason in judged.table()


def test_an_ask_that_is_streamed_is_wrong() -> None:
    assert any("one message" in what for what in fed(*STREAM, kind=Kind.ASK).wrong)
    assert fed(final(0, text=WHOLE), kind=Kind.ASK).wrong == []


@pytest.mark.parametrize("payloads", [[], STREAM[:1], STREAM[:4], [*STREAM[:2], STREAM[4]]])
def test_an_answer_that_is_not_whole_is_lost(payloads: list[bytes]) -> None:
    exchange = fed(*payloads)
    judged = figures(exchange)
    assert (exchange.done, judged.lost, judged.wrong, judged.passed) == (False, [exchange], [], False)


def test_a_refusal_that_passes_is_asked_again_when_the_node_says() -> None:
    exchange = fed(refusal("overloaded", retryable=True, retry_after_ms=1500))
    assert (exchange.done, exchange.ask_again) == (False, NOW + 1.5)
    exchange = fed(refusal("unknown_request", retryable=False))
    assert (exchange.done, exchange.ask_again) == (False, NOW + 0.2)
    for payload in STREAM:
        exchange.feed(payload, NOW)
    assert exchange.wrong == []


def test_what_belongs_to_no_request_is_wrong() -> None:
    assert not figures(fed(*STREAM), strays=("a message that nobody asked for",)).passed


def test_the_table_says_what_there_was() -> None:
    rows = figures(fed(*STREAM, STREAM[1])).table().splitlines()
    shown = {" ".join(row.split()) for row in rows}
    assert {"requests 1 req 1", "finals 1 length 1", "chunks 3", "faults 5", "3 cut", "2 reset", "duplicates removed 1",
            "lost 0", "wrong 0"} <= shown  # fmt: skip


def test_the_same_seed_asks_the_same_and_every_kind_of_fault_comes_in_every_round() -> None:
    assert [one.body for one in orders(Random(3), 50)] == [one.body for one in orders(Random(3), 50)]
    assert [one.body for one in orders(Random(3), 50)] != [one.body for one in orders(Random(4), 50)]
    drawn = schedule(Random(3), 2 * len(KINDS), list(KINDS))
    assert sorted(drawn[: len(KINDS)]) == sorted(drawn[len(KINDS) :]) == sorted(KINDS)
    assert drawn == schedule(Random(3), 2 * len(KINDS), list(KINDS))
