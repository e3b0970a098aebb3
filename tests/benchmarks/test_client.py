"""What the scenarios' client makes of a reply."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest

from benchmarks.client import Exchange
from benchmarks.figures import BenchmarkError


def message(seq: int, kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, "id": "r1", "gen": 1, "seq": seq, "ts": 1.0, **fields}).encode()


def final(seq: int, text: str, **fields: Any) -> bytes:
    proof = {"chars": len(text), "crc32": zlib.crc32(text.encode())}
    return message(seq, "final", **{"finish_reason": "length", "node": "bench", **proof, **fields})


ACCEPTED = message(0, "accepted", node="bench", boot=1, model="starter", queue_position=0)


def exchange(*messages: tuple[float, bytes]) -> Exchange:
    one = Exchange("r1", sent=1.0)
    for at, payload in messages:
        one.take(at, payload)
    return one


def test_times_are_counted_from_the_publication() -> None:
    one = exchange(
        (1.01, ACCEPTED),
        (1.1, message(1, "progress", phase="prefill", done=32, total=60)),
        (1.25, message(2, "chunk", text="4", n=1)),
        (1.3, message(3, "chunk", text="2", n=1)),
        (1.5, message(4, "chunk", text=", 7", n=3)),
        (1.6, final(5, "42, 7")),
    )
    one.check()
    assert one.ttft_ms == pytest.approx(250)
    assert one.gaps_ms(1.0, 2.0) == pytest.approx([50, 200])
    assert one.gaps_ms(1.3, 2.0) == pytest.approx([200])
    assert (one.tokens, one.prefilled, one.ended) == (5, 32, 1.6)


def test_an_answer_with_a_hole_or_another_text_did_not_end_right() -> None:
    hole = exchange((1.0, ACCEPTED), (1.2, message(2, "chunk", text="2", n=1)), (1.3, final(3, "42")))
    other = exchange((1.0, ACCEPTED), (1.2, message(1, "chunk", text="2", n=1)), (1.3, final(2, "3")))
    for one, words in ((hole, "not complete"), (other, "CRC")):
        with pytest.raises(BenchmarkError, match=words):
            one.check()


def test_an_error_is_told_with_its_code() -> None:
    why = {"code": "internal", "status": 500, "message": "the engine died", "retryable": True}
    failed = exchange((1.0, ACCEPTED), (1.3, final(1, "", finish_reason="error", error=why)))
    assert failed.failure == "request r1 ended with internal: the engine died"
