"""A journal can always be opened: what cannot be used is set aside whole, and what cannot be helped is said."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from edged.core.records import Delivered, Ended, Generated, Key, Row, Standing
from edged.journal import JournalBusy, JournalError
from edged.journal.schema import MIGRATIONS, NewerError, migrate
from tests.journal.conftest import Open
from tests.journal.rows import KEEP_S, WALL, a_message, a_past, a_request, open_journal
from tests.users import somebody_else


def fill(path: Path) -> None:
    """A journal of a daemon that was killed: five requests that have ended, five that have not."""
    with_all = open_journal(path)
    for uid in range(1, 11):
        with_all.write([replace(a_request(uid), payload=bytes([uid]) * 500)])
    for seq in range(40):
        with_all.write([a_message(uid, seq, size=100) for uid in range(1, 11)])
    for uid in range(1, 6):
        with_all.write([Ended(uid, WALL), Delivered(uid)])
    with_all.write([Generated(7, 1, "x", ()), Standing(8, 3)])
    with_all.close(clean=False)


def aside(path: Path) -> list[Path]:
    return sorted(one for one in path.parent.iterdir() if ".set-aside-" in one.name)


def spoil(path: Path, what: bytes, at: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(what)


# --- whose is it ----------------------------------------------------------------------------------------------------


def test_a_journal_is_its_owners_alone(open_it: Open, path: Path) -> None:
    journal = open_it()
    journal.write([a_request(1)])
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {one.stat().st_mode & 0o777 for one in path.parent.iterdir()} == {0o600}


def test_two_daemons_do_not_share_a_journal(open_it: Open) -> None:
    journal = open_it()
    with pytest.raises(JournalBusy, match="another edged has the journal"):
        open_it()
    journal.close(clean=True)
    open_it()


def test_a_journal_that_another_process_has_open_is_busy_until_that_ends(path: Path, open_it: Open) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.journal.rows import open_journal\n"
        "journal = open_journal(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "open\n"
            with pytest.raises(JournalBusy):
                open_it()
        finally:
            other.kill()
    open_it()


def test_a_file_of_another_program_is_set_aside_as_it_is(open_it: Open, path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as foreign:
        foreign.execute("CREATE TABLE photos (name)")
    before = path.read_bytes()
    journal = open_it()
    assert journal.set_aside == path.with_name(f"journal.db.set-aside-{WALL:.0f}")
    assert journal.set_aside.read_bytes() == before
    assert journal.salvaged == 0
    assert journal.write([a_request(1)]) is None


@pytest.mark.parametrize("content", [b"x", b"My diary\n" * 1000, b"SQLite format 3\x00", b"\x00" * 4096])
def test_what_is_no_database_is_set_aside(open_it: Open, path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    journal = open_it()
    assert journal.set_aside is not None
    assert journal.set_aside.read_bytes() == content
    assert journal.write([a_request(1)]) is None


def test_an_empty_file_becomes_a_journal(open_it: Open, path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    journal = open_it()
    assert (journal.set_aside, journal.write([a_request(1)])) == (None, None)


def test_files_that_are_set_aside_do_not_replace_each_other(open_it: Open, path: Path) -> None:
    path.parent.mkdir()
    for number in range(3):
        path.write_bytes(b"no %d" % number)
        open_it().close(clean=True)
        path.with_name("journal.db-wal").unlink(missing_ok=True)
    assert [one.read_bytes() for one in aside(path)] == [b"no 0", b"no 1", b"no 2"]


# --- versions -------------------------------------------------------------------------------------------------------


def test_a_journal_of_a_later_version_is_set_aside_and_not_touched(
    open_it: Open, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    journal = open_it()
    assert journal.set_aside is not None
    assert journal.set_aside.read_bytes() == before
    assert "its version is 99" in caplog.text


def test_an_older_journal_is_brought_up_to_date_with_all_that_is_in_it() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        assert migrate(db) == len(MIGRATIONS)
        db.execute("INSERT INTO meta VALUES ('a', 1)")
        later = (*MIGRATIONS, ("ALTER TABLE meta ADD COLUMN note TEXT", "UPDATE meta SET note = 'old'"))
        assert migrate(db, later) == 1
        assert db.execute("SELECT * FROM meta").fetchall() == [("a", 1, "old")]
        assert migrate(db, later) == 0
        with pytest.raises(NewerError):
            migrate(db)


def test_a_step_that_fails_leaves_the_older_journal_as_it_was() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        migrate(db)
        with pytest.raises(sqlite3.OperationalError):
            migrate(db, (*MIGRATIONS, ("CREATE TABLE more (x)", "SELECT * FROM nothing")))
        assert migrate(db) == 0
        assert not db.execute("SELECT * FROM sqlite_master WHERE name = 'more'").fetchall()


# --- damage ---------------------------------------------------------------------------------------------------------


def test_requests_are_read_out_of_a_damaged_journal_and_run_in_their_next_generation(open_it: Open, path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as db:
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'messages'").fetchone()[0]
    spoil(path, os.urandom(1024), at=(root - 1) * 1024)
    journal = open_it(boot_id="boot 2")
    assert journal.set_aside is not None
    assert journal.salvaged == 5
    restored = journal.restored()
    assert (restored.last_uid, restored.intact, restored.same_boot) == (10, True, False)
    assert [one.request.uid for one in restored.unfinished] == [6, 7, 8, 9, 10]
    assert [one.standing for one in restored.unfinished] == [
        Standing(uid, 4 if uid == 8 else 2) for uid in range(6, 11)
    ]
    assert [one.request.payload for one in restored.unfinished] == [bytes([uid]) * 500 for uid in range(6, 11)]
    assert all(not one.said for one in restored.unfinished)
    assert journal.write([a_message(6, 0, gen=2), Ended(6, WALL)]) is None
    journal.close(clean=False)
    journal = open_it(boot_id="boot 2")
    assert (journal.set_aside, len(journal.restored().unfinished)) == (None, 4)


def test_where_standings_are_lost_only_requests_with_time_left_run_again(open_it: Open, path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as db:
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'standings'").fetchone()[0]
    spoil(path, b"\xff" * 1024, at=(root - 1) * 1024)
    copy = path.parent.parent / "later" / "journal.db"
    shutil.copytree(path.parent, copy.parent)
    assert open_it(wall=WALL + 59).salvaged == 10
    assert open_it(copy, wall=WALL + 61).salvaged == 0


def test_a_damaged_journal_of_a_clean_end_is_found_out_when_it_is_read(open_it: Open, path: Path) -> None:
    fill(path)
    open_journal(path).close(clean=True)
    with closing(sqlite3.connect(path)) as db:
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'standings'").fetchone()[0]
    spoil(path, b"\xff" * 1024, at=(root - 1) * 1024)
    journal = open_it()
    assert journal.set_aside is not None
    assert journal.write(a_past(11)) is None


def test_columns_of_the_wrong_kind_are_damage(open_it: Open, path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE requests SET topic = x'00ff' WHERE uid = 9")
        db.commit()
    journal = open_it()
    assert journal.set_aside is not None
    assert [one.request.uid for one in journal.restored().unfinished] == [6, 7, 8, 10]


def test_damage_while_it_is_open_is_said_and_set_aside_at_the_next_start(open_it: Open, path: Path) -> None:
    fill(path)
    journal = open_it()
    journal._db.execute("PRAGMA cache_size = 0")
    journal._db.execute("PRAGMA shrink_memory")
    spoil(path, b"\xff" * (path.stat().st_size - 1024), at=1024)
    errors = [journal.write([a_request(uid, payload=b"x" * 2000)]) for uid in range(20, 30)]
    assert any(error is not None and "is damaged" in error and "set aside" in error for error in errors)
    journal.close(clean=True)
    assert open_it().set_aside is not None


@pytest.mark.parametrize("seed", range(40))
def test_damage_anywhere_never_keeps_a_daemon_from_starting(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "journal.db"
    fill(path)
    if chance.random() < 0.5:  # a log that is not copied yet
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("UPDATE requests SET seed = seed + 1")
        shutil.copytree(tmp_path, tmp_path / "copy")
        db.close()
        path = tmp_path / "copy" / "journal.db"
    for victim in (path, path.with_name("journal.db-wal")):
        if victim.exists() and (size := victim.stat().st_size):
            for _ in range(chance.randint(1, 4)):
                spoil(victim, chance.randbytes(chance.randint(1, 300)), at=chance.randrange(size))
            if chance.random() < 0.2:
                os.truncate(victim, chance.randrange(size))
    for _ in range(2):
        journal = open_journal(path, boot_id="boot 2")
        try:
            restored = journal.restored()
            for one in restored.unfinished:
                assert [said.seq for said in one.said] == list(range(len(one.said)))
            for uid in range(1, 11):
                journal.find(Key("ann", f"r{uid}"))
                journal.messages(uid, 1, 0, 100)
            uid = restored.last_uid + 1
            if journal.write([a_request(uid), a_message(uid, 0)]) is None:
                assert journal.messages(uid, 1, 0, 9)
        finally:
            journal.close(clean=False)


# --- what cannot be helped ------------------------------------------------------------------------------------------


def test_a_directory_that_may_not_be_written_is_said(open_it: Open, path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o500)
    with (
        somebody_else(),
        pytest.raises(JournalError, match=r"cannot be (made|used): .*ermission denied.*journal\.path"),
    ):
        open_it()


def test_a_file_that_may_not_be_written_is_said(open_it: Open) -> None:
    with TemporaryDirectory() as name:  # one that others can reach
        directory = Path(name)
        directory.chmod(0o777)
        (directory / "journal.db").touch(0o400)
        with somebody_else(), pytest.raises(JournalError, match=r"cannot be used: .*ermission denied.*journal\.path"):
            open_it(directory / "journal.db")


def test_a_file_in_place_of_the_directory_is_said(open_it: Open, path: Path) -> None:
    path.parent.write_text("")
    with pytest.raises(JournalError, match="cannot be made"):
        open_it()


def test_a_directory_in_place_of_the_file_is_said(open_it: Open, path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(JournalError, match=r"cannot be used: .*directory"):
        open_it()


def test_after_a_failure_the_lock_is_free(open_it: Open, path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(JournalError):
        open_it()
    with path.with_name("journal.db.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- after a power cut, and after none ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "boot_id", "intact", "same_boot"),
    [
        (True, "boot 1", True, True),
        (True, "boot 2", True, False),
        (False, "boot 1", True, True),
        (False, "boot 2", False, False),
    ],
)
def test_it_knows_whether_all_is_there(open_it: Open, clean: bool, boot_id: str, intact: bool, same_boot: bool) -> None:
    journal = open_it()
    journal.write([a_request(1)])
    journal.close(clean=clean)
    restored = open_it(boot_id=boot_id).restored()
    assert (restored.intact, restored.same_boot) == (intact, same_boot)


def test_a_daemon_that_dies_before_streams_began_again_leaves_them_in_doubt(open_it: Open) -> None:
    journal = open_it()
    journal.write([a_request(1), a_request(2), a_request(3)])
    journal.close(clean=False)
    rows: list[list[Row]] = [
        [Standing(1, 2)],
        [Ended(2, WALL), a_request(4)],
        [Standing(3, 1, begun_with=1), Standing(3, 2)],
    ]
    for row in rows:  # the machine was off, and the daemon is killed again and again
        journal = open_it(boot_id="boot 2")
        assert not journal.restored().intact
        assert journal.write(row) is None
        assert journal.write(()) is None
        journal.close(clean=False)
    journal = open_it(boot_id="boot 2")
    assert not journal.restored().intact, "the doubt is in all that were there at the last start"
    assert journal.write([Standing(1, 3), Standing(3, 3), Standing(4, 2)]) is None
    journal.close(clean=False)
    assert open_it(boot_id="boot 2").restored().intact


def test_what_is_remembered_when_it_opens_depends_on_the_time(open_it: Open) -> None:
    journal = open_it()
    journal.write(a_past(1))
    journal.close(clean=False)
    journal = open_it(wall=WALL + KEEP_S)
    assert not journal.restored().undelivered
    assert journal.tidy(WALL + KEEP_S) is None
