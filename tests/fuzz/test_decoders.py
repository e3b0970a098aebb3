"""No input makes a decoder raise what is not documented, hang, eat memory, or answer twice in two ways."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from random import Random

import pytest

from edged.wire import WireError, parse_reply, parse_status
from tests.fuzz.decoders import TARGETS, Target
from tests.fuzz.mutation import Fuzzer, FuzzError

EXECUTIONS = 1500


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_in_is_read_or_refused_as_documented(name: str) -> None:
    fuzzer = Fuzzer(TARGETS[name], Random(4))
    left = itertools.count(EXECUTIONS, -1)

    fuzzer.run(more=lambda: next(left) > 0)

    assert fuzzer.executions >= EXECUTIONS
    assert len(fuzzer.corpus) > len(TARGETS[name].seeds) // 2, "nothing guides it"


def _planted(data: bytes) -> object:
    """Three steps deep, each of them a place of its own: blind chance does not come to the end of it."""
    message = parse_reply(data)
    if message.gen == 0:
        where = "a refusal"
        if message.seq == 0:
            where = "its first message"
            if message.type == "progress":
                raise KeyError(where)
    return message


def test_a_planted_defect_is_found_and_its_input_made_short() -> None:
    seed = b'{"id":"k1","gen":1,"seq":2,"ts":1795226001.004,"type":"progress","phase":"queued","queue_position":3}'
    fuzzer = Fuzzer(Target(_planted, (WireError,), (seed,)), Random(4), traced=__file__)

    with pytest.raises(FuzzError, match="KeyError") as caught:
        fuzzer.run(more=lambda: fuzzer.executions < 200_000)

    assert len(caught.value.data) <= len(seed)


@pytest.mark.parametrize(
    ("decode", "why"),
    [
        (lambda data: bytes(2_000_000 + len(data)), "bytes of memory"),
        (lambda _: time.monotonic_ns(), "and then"),
        (parse_reply, "WireError"),  # documented there, but not here
    ],
)
def test_memory_and_a_second_answer_and_another_error_are_noticed(decode: Callable[[bytes], object], why: str) -> None:
    fuzzer = Fuzzer(Target(decode, (), (b"x",)), Random(4))

    with pytest.raises(FuzzError, match=why):
        fuzzer.try_one(b"x")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_what_is_no_json_number_is_no_message(number: str) -> None:
    """Found here: it was read, and could not be written again."""
    with pytest.raises(WireError, match="ts"):
        parse_reply(f'{{"id":"k","gen":1,"seq":0,"ts":{number},"type":"chunk","text":"","n":0}}')
    with pytest.raises(WireError, match="since"):
        parse_status(f'{{"state":"online","node":"n","boot":1,"version":"1","since":{number}}}')
