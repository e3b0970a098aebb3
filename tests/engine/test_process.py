"""The daemon's handle on a child process survives whatever the child does, and leaves nothing behind."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edged.engine import process
from edged.engine.process import Lost
from edged.engine.protocol import Cancel, Failed, Finished, Load, Note, Ready, Step
from tests.engine.children.serves import READY
from tests.engine.handles import LOAD, Handle, child, generate, running, until

pytestmark = pytest.mark.usefixtures("in_a_hurry", "nothing_is_left")


def test_orders_reach_the_child_and_its_reports_come_back() -> None:
    with child("serves") as handle:
        assert handle.next(Ready) == (1, READY)
        handle.send(generate(5, "grüß dich"))
        assert handle.next(Step) == (1, Step(deltas=[(5, "grüß dich", [1])], finished=[Finished(5, "stop")]))
        assert handle.engine.alive
        assert handle.engine.pid is not None
        assert running(handle.engine.pid)


def test_orders_that_were_given_before_the_child_was_there_reach_it() -> None:
    handle = child("serves")
    handle.send(generate(1, "early"))
    with handle:
        _, step = handle.next(Step)
        assert step.deltas == [(1, "early", [1])]


def test_stop_ends_the_child_and_leaves_no_descriptor_behind() -> None:
    with child("serves") as handle:
        handle.next(Ready)
        pid = handle.engine.pid
        assert pid is not None
    assert not running(pid)
    assert handle.engine.pid is None
    assert not handle.engine.alive


def test_stop_may_come_twice_or_without_a_start_and_orders_after_it_go_nowhere() -> None:
    handle = child("serves")
    handle.engine.stop()
    with child("serves") as handle:
        handle.next(Ready)
        handle.engine.stop()
        handle.send(generate(1, "late"))


@pytest.mark.parametrize("code", [0, 3])
def test_a_child_that_exits_at_once_is_lost_with_its_code_and_started_again(code: int) -> None:
    with child("exits", str(code)) as handle:
        for number in (1, 2):
            lost_child, lost = handle.next(Lost)
            assert (lost_child, lost.reason) == (number, f"its process ended with exit code {code}")


def test_the_wait_before_the_next_child_grows_to_a_limit() -> None:
    with child("exits", "1") as handle:
        assert [handle.next(Lost)[1].retry_in_s for _ in range(5)] == [0.01, 0.02, 0.04, 0.04, 0.04]


def test_after_a_child_that_served_for_long_the_wait_is_the_first_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_STEADY_S", 0.0)
    with child("serves") as handle:
        for number in (1, 2, 3):
            handle.next(Ready)
            handle.send(generate(1, "die"), child=number)
            assert handle.next(Lost)[1].retry_in_s == 0.01


def test_to_load_for_long_is_not_to_serve_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_STEADY_S", 0.0)
    with child("fails") as handle:
        assert [handle.next(Lost)[1].retry_in_s for _ in range(4)] == [0.01, 0.02, 0.04, 0.04]


def test_stop_does_not_wait_for_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_BACKOFF_S", (10_000.0, 10_000.0))
    with child("exits", "1") as handle:
        assert handle.next(Lost)[1].retry_in_s == 10_000.0


def test_a_killed_child_is_lost_and_the_next_one_serves() -> None:
    with child("serves") as handle:
        handle.next(Ready)
        assert handle.engine.pid is not None
        os.kill(handle.engine.pid, signal.SIGKILL)
        assert handle.next(Lost) == (1, Lost("its process was ended by SIGKILL", 0.01, outside=True))
        assert handle.next(Ready) == (2, READY)
        handle.send(generate(1, "again"), child=2)
        assert handle.next(Step)[1].deltas == [(1, "again", [1])]


def test_orders_for_a_child_that_is_gone_are_not_given_to_the_next() -> None:
    with child("serves") as handle:
        handle.next(Ready)
        handle.send(generate(1, "die"))
        handle.send(generate(2, "for the first"))
        handle.next(Ready)
        handle.send(generate(3, "late, for the first"))
        handle.send(Cancel(3))
        handle.send(generate(4, "for the second"), child=2)
        assert handle.next(Step)[1].deltas == [(4, "for the second", [1])]
        handle.send(generate(5, "the end"), child=2)
        assert handle.next(Step)[1].deltas == [(5, "the end", [1])]


def test_the_next_child_is_told_the_digest_that_the_first_one_computed() -> None:
    with child("serves") as handle:
        assert handle.next(Note)[1].text == "digest ''"
        handle.send(generate(1, "die"))
        assert handle.next(Note)[1].text == "digest 'sha256:5e'"


def test_a_child_whose_file_is_another_one_than_before_computes_its_digest_itself(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"one model")
    command = (sys.executable, "-m", "tests.engine.children.serves")
    with Handle(replace(LOAD, path=str(file)), command) as handle:
        for number, known in enumerate(("", "sha256:5e", ""), 1):
            assert handle.next(Note)[1].text == f"digest '{known}'"
            handle.next(Ready)
            if number == 2:
                file.write_bytes(b"another model")
            handle.send(generate(1, "die"), child=number)


def test_the_last_words_of_an_aborting_child_are_reported() -> None:
    with child("aborts") as handle:
        _, lost = handle.next(Lost)
    assert lost.reason.startswith("its process was ended by SIGABRT; its last words: ")
    assert lost.reason.endswith("chatter \nggml.c:42: GGML_ASSERT(n_tokens > 0) fÄiled")
    assert len(lost.reason) < 600


def test_a_child_that_cannot_load_its_model_is_lost_with_its_own_reason() -> None:
    with child("fails") as handle:
        assert handle.next(Failed)[1].message == "llama.cpp cannot load 'x.gguf': it is a picture"
        _, lost = handle.next(Lost)
        assert lost.reason == "llama.cpp cannot load 'x.gguf': it is a picture; its last words: no such tensor"


@pytest.mark.parametrize("nonsense", [b"\x02\0\0\0{}", b"HTTP/1.1 200 OK\r\n\r\n", b"\xff" * 100])
def test_a_child_that_sends_nonsense_is_given_up(nonsense: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_S", 0.05)  # it does not end by itself
    with child("babbles", nonsense.hex()) as handle:
        number, lost = handle.next(Lost)
        assert (number, lost.reason[:21]) == (1, "it sent nonsense (a f")
        assert handle.next(Lost)[0] == 2


def test_half_a_frame_is_no_report() -> None:
    with child("tears") as handle:
        _, lost = handle.next(Lost)
        assert lost.reason == "its process ended with exit code 0"
        assert not any(isinstance(report, Failed) for _, report in handle.heard)


def test_a_child_that_floods_its_standard_error_holds_nothing_up() -> None:
    with child("floods") as handle:
        handle.next(Ready)
        for uid in range(20):
            handle.send(generate(uid, "heard"))
            assert handle.next(Step)[1].deltas == [(uid, "heard", [1])]
        handle.send(generate(99, "die"))
        _, lost = handle.next(Lost)
        assert lost.reason.startswith("its process was ended by SIGKILL; its last words: ")
        assert len(lost.reason) < 600


def test_a_child_without_standard_error_is_served_without_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[None] = []
    select = selectors.DefaultSelector.select

    def counting(selector: selectors.DefaultSelector, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        turns.append(None)
        return select(selector, timeout)

    monkeypatch.setattr(selectors.DefaultSelector, "select", counting)
    with child("mute") as handle:
        handle.next(Ready)
        for uid in range(50):
            handle.send(generate(uid, "heard"))
            handle.next(Step)
        assert len(turns) <= 4 * 50  # one for the order, one for the answer


def test_sending_to_a_child_that_never_reads_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_S", 0.05)
    with child("deaf") as handle:
        handle.next(Ready)
        for uid in range(20):
            handle.send(generate(uid, "x" * 1_000_000))
        pid = handle.engine.pid
        assert pid is not None
    assert not running(pid)


def test_what_a_child_could_not_read_yet_arrives_when_it_does() -> None:
    with child("serves") as handle:
        handle.next(Ready)
        pid = handle.engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        for uid in range(5):
            handle.send(generate(uid, "x" * 1_000_000))
        os.kill(pid, signal.SIGCONT)
        for uid in range(5):
            [(answered, text, _)] = handle.next(Step)[1].deltas
            assert (answered, len(text)) == (uid, 1_000_000)


def test_a_child_that_hangs_when_it_is_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_S", 0.05)
    with child("deaf") as handle:
        handle.next(Ready)
        pid = handle.engine.pid
        assert pid is not None
        handle.engine.stop()
        assert not running(pid)


def test_a_command_that_cannot_be_started_is_tried_again() -> None:
    with Handle(LOAD, ("/no/such/program",)) as handle:
        for number in (1, 2):
            lost_child, lost = handle.next(Lost)
            assert lost_child == number
            assert lost.reason.startswith("its process cannot be started: [Errno 2] No such file")


def test_a_machine_without_descriptors_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = socket.socketpair, [OSError(24, "Too many open files")]
    handle = child("serves")

    def socketpair() -> tuple[socket.socket, socket.socket]:
        if left:
            raise left.pop()
        return real()

    monkeypatch.setattr(socket, "socketpair", socketpair)
    with handle:
        assert handle.next(Lost)[1].reason == "its process cannot be started: [Errno 24] Too many open files"
        assert handle.next(Ready)[0] == 2


def test_a_machine_without_a_descriptor_to_wait_with_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = selectors.DefaultSelector, [OSError(24, "Too many open files")]

    def selector() -> selectors.BaseSelector:
        if left:
            raise left.pop()
        return real()

    monkeypatch.setattr(selectors, "DefaultSelector", selector)
    with child("serves") as handle:
        assert handle.next(Lost)[1].reason == "its process cannot be started: [Errno 24] Too many open files"
        assert handle.next(Ready)[0] == 2


def test_a_path_that_is_no_utf8_reaches_the_child() -> None:
    load = Load(path=os.fsdecode(b"/models/\xff.gguf"))
    with Handle(load, (sys.executable, "-m", "tests.engine.children.serves")) as handle:
        assert handle.next(Ready)[0] == 1


@pytest.mark.model
def test_a_child_whose_daemon_is_killed_ends_even_if_it_hangs(starter: Path) -> None:
    """A stopped process reads nothing and notices nothing; only the kernel can end it (PR_SET_PDEATHSIG)."""
    command = [sys.executable, "-m", "tests.engine.children.parent", str(starter)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        try:
            os.kill(worker, signal.SIGSTOP)
            assert running(worker)
            parent.kill()
            until(lambda: not running(worker))
        finally:
            parent.kill()
            if running(worker):
                os.kill(worker, signal.SIGKILL)
