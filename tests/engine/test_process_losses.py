"""When a child is given up, and what the daemon is told of the end of one."""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest

from edged.engine import process
from edged.engine.process import Lost
from edged.engine.protocol import Cancel, Finished, Note, Ready, Step, encode
from edged.engine.watch import Patience
from tests.engine.handles import IMPATIENT, child, generate

pytestmark = pytest.mark.usefixtures("in_a_hurry", "nothing_is_left")


@pytest.mark.parametrize(
    ("hang", "why"),
    [
        ("stop", "has not moved for 1 s"),
        ("wait in a step", "has not moved for 1 s in a step that should take 0.1 s"),
        ("spin in a step", "has computed for 2 s without a result in a step that should take 0.1 s"),
        ("spin in an unknown step", "has computed for 2 s without a result"),
        ("spin", "has computed for 2 s without a result"),
        ("load", "has not moved for 2 s while it loaded"),
    ],
)
def test_a_child_that_hangs_is_replaced(hang: str, why: str) -> None:
    with child("hangs", hang, patience=IMPATIENT) as handle:
        if hang != "load":
            handle.next(Ready)
            handle.send(generate(1, "hang"))
        number, lost = handle.next(Lost)
        assert (number, lost.outside) == (1, False)
        assert why in lost.reason
        if hang != "load":
            assert handle.next(Ready)[0] == 2


def test_a_step_that_takes_long_as_expected_is_no_hang() -> None:
    with child("hangs", "spin in a long step", patience=IMPATIENT) as handle:
        handle.next(Ready)
        handle.send(generate(1, "hang"))
        assert handle.next(Step)[1].finished == [Finished(1, "stop")]


def test_a_child_without_work_may_stand_still() -> None:
    with child("hangs", "nothing", patience=Patience(look_s=0.05, still_s=1.5, between_s=1.5)) as handle:
        handle.next(Ready)
        for uid in (1, 2):
            handle.send(generate(uid, "serve"))
            assert handle.next(Step)[0] == 1
            time.sleep(2.0)
        assert not any(isinstance(report, Lost) for _, report in handle.heard)


@pytest.mark.parametrize(
    ("number", "outside"), [(signal.SIGKILL, True), (signal.SIGTERM, True), (signal.SIGABRT, False)], ids=str
)
def test_whether_a_child_was_killed_from_outside_is_told(number: signal.Signals, outside: bool) -> None:
    with child("serves") as handle:
        handle.next(Ready)
        assert handle.engine.pid is not None
        os.kill(handle.engine.pid, number)
        _, lost = handle.next(Lost)
        assert (lost.outside, number.name in lost.reason) == (outside, True)


def test_where_llama_cpps_instructions_are_unknown_the_model_is_loaded_without_the_most_special_ones() -> None:
    with child("illegal", "repacked") as handle:
        _, lost = handle.next(Lost)
        assert (lost.error, lost.outside) == ("", False), "who waits has to wait for the next try only"
        assert "SIGILL" in lost.reason
        assert '"Install and run"' in lost.reason, "what to do about it"
        assert "without repacked weights" in lost.reason, "and what is done meanwhile"
        assert handle.next(Ready)[0] == 2
        assert handle.engine.pid is not None
        os.kill(handle.engine.pid, signal.SIGKILL)
        assert handle.next(Ready)[0] == 3, "nobody tries again what is known not to work"


def test_where_even_that_does_not_help_who_waits_is_told() -> None:
    with child("illegal", "all") as handle:
        assert [handle.next(Lost)[1].error for _ in range(3)] == ["", "unavailable", "unavailable"]
        assert "without repacked weights" not in handle.next(Lost)[1].reason


def test_an_illegal_instruction_later_on_is_a_death_as_any_other() -> None:
    with child("serves") as handle:
        handle.next(Ready)
        assert handle.engine.pid is not None
        os.kill(handle.engine.pid, signal.SIGILL)
        _, lost = handle.next(Lost)
        assert "SIGILL" in lost.reason
        assert "repacked" not in lost.reason


def test_a_child_that_the_daemon_has_killed_was_not_killed_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_S", 0.1)
    with child("lingers") as handle:
        handle.next(Ready)
        handle.send(generate(1, "close"))
        _, lost = handle.next(Lost)
        assert (lost.reason, lost.outside) == ("it closed its socket and did not end", False)


def test_a_child_that_the_kernel_killed_because_memory_ran_out_was_killed_from_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = itertools.count()
    monkeypatch.setattr(process, "oom_kills", lambda: next(counts))
    with child("serves") as handle:
        handle.next(Ready)
        assert handle.engine.pid is not None
        os.kill(handle.engine.pid, signal.SIGKILL)
        _, lost = handle.next(Lost)
        assert (lost.outside, lost.error) == (True, "")
        assert "SIGKILL because memory ran out" in lost.reason


def test_a_child_that_the_kernel_killed_so_while_it_loaded_had_no_memory_for_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = itertools.count()
    monkeypatch.setattr(process, "oom_kills", lambda: next(counts))
    with child("babbles", encode(Note("info", "here")).hex()) as handle:
        handle.next(Note)
        assert handle.engine.pid is not None
        os.kill(handle.engine.pid, signal.SIGKILL)
        _, lost = handle.next(Lost)
        assert lost.error == "out_of_memory"
        assert "SIGKILL because memory ran out" in lost.reason


def test_why_a_model_cannot_be_loaded_is_handed_on() -> None:
    with child("fails", "no room", "out_of_memory") as handle:
        assert handle.next(Lost)[1].error == "out_of_memory"


def test_a_cancelled_request_aborts_the_step_that_has_long_to_go() -> None:
    with child("hangs", "until aborted") as handle:
        handle.next(Ready)
        handle.send(generate(1, "hang"))
        assert handle.next(Note)[1].text == "in a step"
        handle.send(Cancel(1))
        assert handle.next(Step)[1].finished == [Finished(1, "cancelled")]


@pytest.mark.parametrize("step", ["short steps", "again"])
def test_a_step_that_is_about_to_end_is_not_aborted_nor_two_in_a_row_nor_one_for_somebody_unknown(step: str) -> None:
    with child("hangs", step) as handle:
        handle.next(Ready)
        handle.send(generate(1, "hang"))
        handle.next(Note)
        handle.send(Cancel(1))
        handle.send(Cancel(7))
        assert handle.next(Step)[1].finished == [Finished(1, "stop")]
