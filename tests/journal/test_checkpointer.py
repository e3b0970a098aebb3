"""The log stays short, and the writer waits for nobody while that is seen to."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edged.core.events import Synced
from edged.journal import Journal
from edged.journal.checkpointer import Checkpointer, _State
from tests.journal.conftest import Open
from tests.journal.rows import Mailbox, a_message, a_request, cut_power, payloads

_STEP = 20_000


def replaced(journal: Journal, path: Path, *, most_bytes: int = 1 << 40) -> Checkpointer:
    """A journal's checkpointer, in place of one that works in large steps only."""
    assert journal._checkpointer is not None
    journal._checkpointer.close()
    log = path.with_name("journal.db-wal")
    assert journal._syncer is not None
    journal._checkpointer = Checkpointer(
        path, log, journal._db, doubt=journal._syncer.doubt, step_bytes=_STEP, most_bytes=most_bytes
    )
    return journal._checkpointer


class Story:
    """Writes the messages of two streams, as many as are wanted."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.said = 0
        assert journal.write([a_request(1), a_request(2)]) is None

    def go_on(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.journal.write([a_message(1, self.said, size=300), a_message(2, self.said)]) is None
            self.said += 1

    def check(self, journal: Journal) -> None:
        assert journal.messages(1, 1, 0, 1 << 20) == payloads(a_message(1, n, size=300) for n in range(self.said))


@pytest.fixture
def log(path: Path) -> Path:
    return path.with_name("journal.db-wal")


def eventually(what: str, *, rest_s: float = 0.001) -> Iterator[None]:
    """For `for`: until a bounded deadline. A writer that rests for more than 0.25 s has the log copied."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        yield
        time.sleep(rest_s)
    pytest.fail(f"in vain: {what}")


def test_no_write_syncs_and_no_write_copies_the_log(open_it: Open) -> None:
    journal = open_it()
    assert journal._db.execute("PRAGMA synchronous").fetchone()[0] == 0
    assert journal._db.execute("PRAGMA wal_autocheckpoint").fetchone()[0] == 0


def test_a_log_that_was_copied_is_emptied_by_a_writer_that_rested(open_it: Open, path: Path, log: Path) -> None:
    journal = open_it()
    keeper = replaced(journal, path)
    story = Story(journal)
    for _ in range(3):
        while log.stat().st_size < _STEP:
            story.go_on()
        emptied = keeper.emptied
        for _ in eventually("the log is emptied", rest_s=0.3):
            story.go_on()
            if keeper.emptied > emptied:
                break
        assert log.stat().st_size < _STEP
        assert journal._db.execute("PRAGMA synchronous").fetchone()[0] == 0
    assert keeper.forced == 0
    story.check(journal)


def test_a_writer_that_never_rests_is_never_kept_waiting(open_it: Open, path: Path, log: Path) -> None:
    journal = open_it()
    keeper = replaced(journal, path)
    journal._db.execute("PRAGMA busy_timeout = 0")  # a lock that would be waited for is an error
    story = Story(journal)
    largest = 0
    for _ in eventually("many copies are made"):
        story.go_on(50)
        largest = max(largest, log.stat().st_size)
        if keeper.copies > 20 and story.said > 3000:
            break
    assert keeper.forced == 0
    story.check(journal)
    journal.close(clean=False)
    story.check(open_it())


def test_writing_goes_on_while_the_disk_is_slow(open_it: Open, path: Path, log: Path) -> None:
    journal = open_it()
    keeper = replaced(journal, path)
    begun, go_on = threading.Event(), threading.Event()
    copy = keeper._copy

    def slow() -> int:
        begun.set()
        assert go_on.wait(30)
        return copy()

    keeper._copy = slow  # type: ignore[method-assign]
    story = Story(journal)
    for _ in eventually("the copying begins"):
        story.go_on()
        if begun.is_set():
            break
    story.go_on(500)
    assert log.stat().st_size > 10 * _STEP
    assert (keeper.copies, keeper.emptied) == (0, 0)
    go_on.set()
    for _ in eventually("the log is emptied", rest_s=0.3):
        story.go_on()
        if keeper.emptied:
            break
    story.check(journal)


def test_a_log_that_is_too_long_is_emptied_even_if_the_writer_waits(open_it: Open, path: Path, log: Path) -> None:
    journal = open_it()
    keeper = replaced(journal, path, most_bytes=10 * _STEP)
    story = Story(journal)
    copied = keeper._copy
    keeper._copy = lambda: copied() and 1  # type: ignore[method-assign]  # there is always something new
    for _ in eventually("it is emptied by force"):
        story.go_on(5)
        if keeper.forced:
            break
    assert keeper.emptied
    story.go_on()
    assert log.stat().st_size < _STEP
    assert journal._db.execute("PRAGMA synchronous").fetchone()[0] == 0
    story.check(journal)


def test_somebody_who_looks_into_the_file_keeps_nobody_waiting(open_it: Open, path: Path) -> None:
    journal = open_it()
    keeper = replaced(journal, path, most_bytes=2 * _STEP)
    story = Story(journal)
    with closing(sqlite3.connect(path, isolation_level=None)) as operator:
        operator.execute("BEGIN")
        operator.execute("SELECT count(*) FROM messages").fetchone()
        story.go_on(150)
        for _ in eventually("it is tried"):
            story.go_on()
            if keeper.forced:
                break
        assert keeper.emptied == 0
        assert journal._db.execute("PRAGMA synchronous").fetchone()[0] == 1, "the log may be begun again by SQLite"
        story.go_on(3)
    for _ in eventually("it is emptied"):
        story.go_on()
        if keeper.emptied:
            break
    assert journal._db.execute("PRAGMA synchronous").fetchone()[0] == 0
    story.check(journal)


def salt(log: Path) -> bytes:
    """Another one each time that the log begins (file format, 4.1)."""
    with log.open("rb") as file:
        return file.read(32)[16:24]


def test_sqlite_never_begins_the_log_again_by_itself(open_it: Open, path: Path, log: Path) -> None:
    """Its header would have to be synced then, in the writer."""
    journal = open_it()
    keeper = replaced(journal, path)
    copied, go_on = threading.Event(), threading.Event()
    copy = keeper._copy

    def pause() -> int:
        result = copy()
        copied.set()
        assert go_on.wait(30)
        return result

    keeper._copy = pause  # type: ignore[method-assign]
    story = Story(journal)
    story.go_on(40)
    assert copied.wait(30)
    before = salt(log), log.stat().st_size
    story.go_on(5)  # all was copied before, and nobody has told the writer
    assert salt(log) == before[0]
    assert log.stat().st_size > before[1]
    go_on.set()
    seen: set[bytes] = set()
    for _ in eventually("the log was emptied several times", rest_s=0.3):
        for _ in range(40):
            story.go_on()
            seen.add(salt(log))
        if keeper.emptied >= 3:
            break
    assert len(seen) == keeper.emptied + 1
    story.check(journal)


class _NoDisk:
    """A connection whose syncs fail."""

    def execute(self, _: str) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    def close(self) -> None:
        pass


def test_a_copy_that_the_disk_fails_leaves_no_sync_to_be_believed(open_it: Open, path: Path, log: Path) -> None:
    mailbox = Mailbox()
    journal = open_it(path, mailbox)
    keeper = replaced(journal, path)
    real, keeper._db = keeper._db, _NoDisk()  # type: ignore[assignment]
    story = Story(journal)
    for _ in eventually("a copy fails"):
        story.go_on()
        journal.sync(story.said)
        if (error := mailbox.get().error) is not None:
            break
    assert error is not None
    assert "cannot be copied" in error
    keeper._db = real
    assert journal.write(()) is None
    assert log.stat().st_size < _STEP
    journal.sync(1 << 20)
    assert mailbox.get() == Synced(1 << 20)
    story.check(journal)


@pytest.mark.parametrize("seed", range(6))
def test_a_power_cut_around_a_copy_loses_nothing_that_was_synced(
    open_it: Open, path: Path, log: Path, tmp_path: Path, seed: int
) -> None:
    """What stands only in the log is certain after a sync; what was copied is, even if the log is emptied."""
    chance = random.Random(seed)
    journal = open_it()
    keeper = replaced(journal, path)
    story = Story(journal)
    story.go_on(chance.randint(30, 60))
    for _ in eventually("all of it is copied", rest_s=0.3):
        with keeper._changed:
            if keeper._state is _State.COPIED and keeper._copied == log.stat().st_size:
                break
        story.go_on()
    copied, kept = story.said, keeper._copied
    for _ in range(chance.randint(0, 9)):
        # not through the journal, so that nothing is copied meanwhile
        journal._scribe.write([a_message(1, story.said, size=300), a_message(2, story.said)])
        story.said += 1
    left = cut_power(path, tmp_path / "copied", kept, chance)
    emptied = keeper.emptied
    for _ in eventually("the log is emptied", rest_s=0.3):
        story.go_on()
        if keeper.emptied > emptied:
            break
    journal._scribe.write([a_message(1, story.said, size=300)])
    for cut, certain in [(left, copied), (cut_power(path, tmp_path / "emptied", 0, chance), story.said - 1)]:
        after = open_it(cut, boot_id="boot 2")
        assert after.set_aside is None
        assert len(after.restored().unfinished[0].said) >= certain
