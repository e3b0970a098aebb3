"""The journal keeps to its size; what cannot be written is said, and can be written when there is room again."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edged.core.records import Delivered, Ended, Key, Row
from edged.journal import errors
from tests.journal.conftest import Open
from tests.journal.rows import KEEP_S, WALL, a_message, a_past, a_request

_SMALL = 200_000


def test_answered_requests_make_room_before_their_time(open_it: Open, path: Path) -> None:
    journal = open_it(max_bytes=_SMALL)
    for uid in range(1, 301):
        assert journal.write([*a_past(uid, messages=20), Delivered(uid)]) is None
    assert journal.find(Key("ann", "r1")) is None
    assert journal.find(Key("ann", "r300")) is not None
    journal.close(clean=True)
    assert path.stat().st_size <= _SMALL


def test_what_is_not_delivered_is_not_given_up(open_it: Open, path: Path) -> None:
    journal = open_it(max_bytes=_SMALL)
    error, uid = None, 0
    while error is None:
        uid += 1
        assert uid < 1000
        error = journal.write(a_past(uid, messages=20))
    assert "journal.max_size (200000)" in error
    assert "journal.keep_s" in error
    assert journal.find(Key("ann", f"r{uid}")) is None, "all or none"
    assert journal.messages(uid, 1, 0, 9) == []
    assert journal.find(Key("ann", "r1")) is not None
    assert journal.write([Delivered(1)]) is None
    assert journal.write(a_past(uid, messages=20)) is None
    journal.tidy(WALL + KEEP_S)
    assert journal.write(a_past(uid + 1, messages=20)) is None
    journal.close(clean=True)
    assert path.stat().st_size <= _SMALL


def test_after_an_error_the_same_rows_can_be_written_again(open_it: Open) -> None:
    journal = open_it(max_bytes=_SMALL)
    journal.write([a_request(1), a_message(1, 0)])
    rows: list[Row] = [a_message(1, 1), a_message(1, 2, size=_SMALL), Ended(1, WALL)]
    assert journal.write(rows) is not None
    assert [seq for seq, _ in journal.messages(1, 1, 0, 9)] == [0]
    assert journal.write([a_message(1, 1), a_message(1, 2), Ended(1, WALL)]) is None
    past = journal.find(Key("ann", "r1"))
    assert past is not None
    assert past.messages == 3


def test_a_bound_that_was_lowered_counts_from_the_next_start(open_it: Open, path: Path) -> None:
    journal = open_it()
    for uid in range(1, 301):
        journal.write([*a_past(uid, messages=20), *([Delivered(uid)] if uid > 20 else [])])
    journal.close(clean=True)
    assert path.stat().st_size > 2 * _SMALL
    journal = open_it(max_bytes=_SMALL)
    for uid in range(301, 340):
        assert journal.write([*a_past(uid, messages=20), Delivered(uid)]) is None
    assert all(journal.find(Key("ann", f"r{uid}")) is not None for uid in [*range(1, 21), 339])
    journal.close(clean=True)
    assert path.stat().st_size <= _SMALL


def test_a_bound_below_what_must_be_kept_stops_the_growth(open_it: Open, path: Path) -> None:
    journal = open_it()
    for uid in range(1, 301):
        journal.write(a_past(uid, messages=20))
    journal.close(clean=True)
    before = path.stat().st_size
    journal = open_it(max_bytes=_SMALL)
    assert len(journal.restored().undelivered) == 300
    error, uid = None, 300
    while error is None:
        uid += 1
        assert uid < 400
        error = journal.write(a_past(uid, messages=20))
    assert "journal.max_size" in error
    while (due := journal.tidy(WALL + KEEP_S)) is not None and due <= WALL + KEEP_S:
        pass
    assert journal.write(a_past(uid, messages=20)) is None
    journal.close(clean=True)
    assert path.stat().st_size <= before + 2048


def test_the_size_is_that_of_what_is_in_it(open_it: Open) -> None:
    journal = open_it()
    empty = journal.size()
    journal.write([a_request(1, payload=bytes(100_000))])
    assert journal.size() > empty + 200_000, "in the log as well"
    journal.close(clean=True)
    journal = open_it()
    assert 100_000 < journal.size() < 140_000


def test_a_full_disk_is_told_from_a_full_journal(open_it: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = open_it(max_bytes=_SMALL)
    monkeypatch.setattr(errors, "free_bytes", lambda _: 4096)
    error = journal.write([a_request(1, payload=bytes(_SMALL * 2))])
    assert error is not None
    assert "the disk is full: 4096 bytes are free" in error


_LIMITED = """
import resource, sys
from pathlib import Path
from tests.journal.rows import a_message, a_request, open_journal
journal = open_journal(Path(sys.argv[1]))
assert journal.write([a_request(1)]) is None
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
seq, error = 0, None
while error is None and seq < 1000:
    error = journal.write([a_message(1, seq, size=500)])
    seq += error is None
assert error is not None and "cannot be written" in error, error
assert journal.write([a_message(1, seq, size=500)]) is not None
assert len(journal.messages(1, 1, 0, 1000)) == seq
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert journal.write(()) is None
for more in range(seq, seq + 10):
    assert journal.write([a_message(1, more, size=500)]) is None
journal.close(clean=False)
print(seq + 10)
"""


def test_when_the_system_refuses_to_write_and_then_does_not_nothing_is_lost(open_it: Open, path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    ran = subprocess.run([sys.executable, "-c", _LIMITED, str(path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert len(open_it().restored().unfinished[0].said) == int(ran.stdout)


_FULL = """
import os, sys
from pathlib import Path
from edged.journal import JournalFull
from tests.journal.rows import a_message, a_request, open_journal
disk = Path(sys.argv[1])
journal = open_journal(disk / "journal.db")
assert journal.write([a_request(1)]) is None
(disk / "other").write_bytes(bytes(1_800_000))
seq, error = 0, None
while error is None and seq < 10_000:
    error = journal.write([a_message(1, seq, size=5000)])
    seq += error is None
assert "the disk is full" in error, error
assert len(journal.messages(1, 1, 0, 10_000)) == seq
(disk / "other").unlink()
assert journal.write([a_message(1, seq, size=5000)]) is None
journal.close(clean=True)
journal = open_journal(disk / "journal.db")
assert len(journal.restored().unfinished[0].said) == seq + 1
journal.close(clean=True)
with (disk / "other").open("wb", buffering=0) as other:
    try:
        while other.write(bytes(512)):
            pass
    except OSError:
        pass
try:
    open_journal(disk / "journal.db")
    raise SystemExit("it was opened")
except JournalFull:
    pass
(disk / "other").unlink()
open_journal(disk / "journal.db").close(clean=True)
"""


def test_a_disk_that_is_full_and_then_is_not(tmp_path: Path) -> None:
    unshare = shutil.which("unshare") or "unshare"
    mount = "mount -t tmpfs -o size=3m tmpfs"
    namespace = [unshare, *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--mount"]
    probe = [*namespace, "sh", "-c", f"{mount} '{tmp_path}'"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        why = "this machine lets nobody mount a file system of their own"
        if os.environ.get("CI"):
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    command = f"{mount} '{tmp_path}' && exec '{sys.executable}' -c \"$1\" '{tmp_path}'"
    ran = subprocess.run(
        [*namespace, "sh", "-c", command, "sh", _FULL], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert ran.returncode == 0, ran.stderr
