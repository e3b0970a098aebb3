"""What was written survives the process, what was synced survives the power; and the writer waits for neither."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edged.core.events import Synced
from edged.core.records import Ended, Restored, Standing
from tests.journal.conftest import Open
from tests.journal.rows import WALL, Mailbox, a_message, a_request, cut_power, open_journal, payloads

_CHILD = """
import sys
from pathlib import Path
from tests.journal.rows import a_message, a_request, open_journal
journal = open_journal(Path(sys.argv[1]))
assert journal.write([a_request(uid) for uid in range(1, 9)]) is None
seq = 0
while True:
    assert journal.write([a_message(uid, seq) for uid in range(1, 9)]) is None
    print(seq, flush=True)
    seq += 1
"""


@pytest.mark.parametrize("after", [0, 50, 3000])
def test_after_a_kill_all_that_was_written_is_there(open_it: Open, path: Path, after: int) -> None:
    with subprocess.Popen([sys.executable, "-c", _CHILD, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = iter(child.stdout.readline, "")
        for line in lines:
            if int(line) >= after:
                break
        child.send_signal(signal.SIGKILL)
        last = max((int(line) for line in lines if line.endswith("\n")), default=after)
    restored = open_it().restored()
    assert restored.intact
    assert len(restored.unfinished) == 8
    for one in restored.unfinished:
        uid = one.request.uid
        assert len(one.said) in {last + 1, last + 2}, "all or none of a burst, and all that it told of"
        assert one.said == tuple(a_message(uid, seq) for seq in range(len(one.said)))
    assert len({len(one.said) for one in restored.unfinished}) == 1


def _as_it_is(path: Path, to: Path) -> Restored:
    """What a daemon would find that starts now."""
    shutil.copytree(path.parent, to)
    journal = open_journal(to / path.name)
    journal.close(clean=False)
    return journal.restored()


@pytest.mark.parametrize("seed", range(8))
def test_after_a_power_cut_all_that_was_synced_is_there(open_it: Open, path: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    mailbox = Mailbox()
    journal = open_it(path, mailbox)
    journal.write([a_request(1), a_request(2)])
    said = synced = kept = 0
    for number in range(1, chance.randint(3, 12)):
        for _ in range(chance.randint(1, 9)):
            journal.write([a_message(1, said), a_message(2, said)])
            said += 1
        if chance.random() < 0.5:
            journal.sync(number)
            assert mailbox.get() == Synced(number)
            synced, kept = said, path.with_name("journal.db-wal").stat().st_size
    journal.write([a_message(1, said), a_message(2, said), Ended(2, WALL)])
    if not kept:
        journal.sync(99)
        mailbox.get()
        synced, kept = said + 1, path.with_name("journal.db-wal").stat().st_size
    left = cut_power(path, tmp_path / "cut", kept, chance)
    after = open_it(left, boot_id="boot 2")
    restored = after.restored()
    assert (after.set_aside, restored.intact) == (None, False)
    lengths = [len(one.said) for one in restored.unfinished]
    assert lengths[0] >= synced
    assert all(
        one.said == tuple(a_message(one.request.uid, n) for n in range(lengths[0])) for one in restored.unfinished
    )
    assert len(lengths) == 2 or after.messages(2, 1, 0, 9999) == payloads(a_message(2, n) for n in range(said + 1))


def test_an_orderly_end_does_not_vouch_for_what_a_power_cut_may_have_torn(open_it: Open) -> None:
    journal = open_it()
    journal.write([a_request(1), a_message(1, 0)])
    journal.close(clean=False)
    for _ in range(2):
        journal = open_it(boot_id="boot 2")
        assert not journal.restored().intact
        journal.close(clean=True)  # with a full disk, say: nothing could be written
    journal = open_it(boot_id="boot 2")
    journal.write([Standing(1, 2)])
    journal.close(clean=True)
    assert open_it(boot_id="boot 3").restored().intact


def test_many_who_wait_for_the_disk_share_one_sync(open_it: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs, begun, go_on = [], threading.Semaphore(0), threading.Semaphore(0)

    def slow(descriptor: int) -> None:
        syncs.append(descriptor)
        begun.release()
        assert go_on.acquire(timeout=30)

    mailbox = Mailbox()
    journal = open_it(path, mailbox)
    monkeypatch.setattr(os, "fdatasync", slow)
    journal.sync(1)
    assert begun.acquire(timeout=30)
    for number in range(2, 50):
        assert journal.write([a_request(number)]) is None, "the writer does not wait"
        journal.sync(number)
    assert mailbox.is_empty
    go_on.release(2)
    assert [mailbox.get(), mailbox.get()] == [Synced(1), Synced(49)]
    assert len(syncs) == 2
    assert mailbox.is_empty


def test_what_is_asked_before_the_end_is_answered(open_it: Open, path: Path) -> None:
    mailbox = Mailbox()
    journal = open_it(path, mailbox)
    journal.write([a_request(1)])
    journal.sync(5)
    journal.close(clean=True)
    assert mailbox.get() == Synced(5)


def test_after_a_failed_sync_none_is_believed_until_all_was_written_anew(
    open_it: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    mailbox = Mailbox()
    journal = open_it(path, mailbox)
    journal.write([a_request(1)])
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        journal.sync(1)
        error = mailbox.get().error
    assert error is not None
    assert "Input/output error" in error
    journal.sync(2)
    assert mailbox.get() == Synced(2, error), "the kernel says that only once"
    assert journal.write([a_request(2)]) is None
    journal.sync(3)
    assert mailbox.get() == Synced(3, error)
    assert journal.write(()) is None
    assert path.with_name("journal.db-wal").stat().st_size < 10_000
    journal.sync(4)
    assert mailbox.get() == Synced(4)
    assert len(_as_it_is(path, path.parent.parent / "copy").unfinished) == 2
