"""What was written is what is asked for: after `write`, after a restart, and as long as it is to be remembered."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.core.events import Synced
from edged.core.records import (
    Delivered,
    Ended,
    Generated,
    Key,
    NewRequest,
    Past,
    Restored,
    Row,
    Said,
    Standing,
    Unfinished,
    Withdrawn,
)
from edged.journal import Journal
from tests.journal.conftest import Open
from tests.journal.rows import KEEP_S, WALL, Mailbox, a_message, a_past, a_request, open_journal, payloads


def test_a_new_journal_has_nothing(open_it: Open) -> None:
    journal = open_it()
    assert journal.restored() == Restored()
    assert (journal.set_aside, journal.salvaged) == (None, 0)
    assert journal.find(Key("ann", "r1")) is None
    assert journal.redelivered(1, b"") is None
    assert journal.messages(1, 1, 0, 10) == []
    assert journal.tidy(WALL) is None


def test_an_unfinished_request_is_restored_as_it_was(open_it: Open) -> None:
    request = a_request(3, packet_id=9)
    standing = Standing(3, 1, begun_with=4, fruitless=2, suspected_at=4, resumed=1)
    said = tuple(a_message(3, seq, confirmed=seq // 2) for seq in range(5))
    generated = (Generated(3, 1, "a\ud800", (1, 2)), Generated(3, 1, "", ()))
    journal = open_it()
    assert journal.write([request, *said[:2], generated[0]]) is None
    assert journal.write([standing, *said[2:], generated[1]]) is None
    journal.close(clean=False)
    assert open_it().restored() == Restored(3, True, True, (Unfinished(request, standing, said, generated),))


def test_a_request_that_never_ran_stands_at_its_first_generation(open_it: Open) -> None:
    journal = open_it()
    journal.write([replace(a_request(1), gen=4)])
    journal.close(clean=False)
    assert open_it().restored().unfinished[0].standing == Standing(1, 4)


def test_only_the_last_generation_is_restored_and_read(open_it: Open) -> None:
    journal = open_it()
    journal.write([a_request(1), a_message(1, 0), a_message(1, 1), Standing(1, 2, begun_with=0)])
    again = a_message(1, 0, gen=2)
    journal.write([again])
    assert journal.messages(1, 1, 0, 10) == []
    assert journal.messages(1, 2, 0, 10) == payloads([again])
    journal.close(clean=False)
    journal = open_it()
    assert journal.restored().unfinished[0].said == (again,)
    assert journal.messages(1, 1, 0, 10) == []
    assert journal.messages(1, 2, 0, 10) == payloads([again])


def test_what_is_said_after_a_restart_goes_on(open_it: Open) -> None:
    journal = open_it()
    journal.write([a_request(1), a_request(2), a_message(1, 0), a_message(2, 0)])
    journal.close(clean=False)
    journal = open_it()
    journal.write([a_message(1, 1, confirmed=1), a_message(2, 1), a_message(1, 2, confirmed=1), Ended(1, WALL)])
    past = journal.find(Key("ann", "r1"))
    assert past is not None
    assert (past.messages, past.confirmed) == (3, 1)
    assert journal.messages(1, 1, 0, 10) == payloads(a_message(1, seq) for seq in range(3))
    journal.close(clean=False)
    assert [len(one.said) for one in open_it().restored().unfinished] == [2]


def test_an_ended_request_is_found_by_its_name(open_it: Open) -> None:
    journal = open_it()
    journal.write([a_request(1), a_message(1, 0)])
    assert journal.find(Key("ann", "r1")) is None, "it has not ended"
    journal.write([a_message(1, 1, confirmed=1), Ended(1, WALL)])
    request = a_request(1)
    expected = Past(1, request.key, request.digest, request.topic, request.correlation, 1, 2, 1)
    assert journal.find(Key("ann", "r1")) == expected
    assert journal.find(Key(None, "r1")) is None
    assert journal.find(Key("ann", "r")) is None


def test_a_request_without_a_client_is_found(open_it: Open) -> None:
    journal = open_it()
    journal.write([replace(a_request(1), key=Key(None, "x")), Ended(1, WALL)])
    assert journal.find(Key(None, "x")) is not None


def test_of_two_with_the_same_name_the_newest_is_found(open_it: Open) -> None:
    journal = open_it()
    journal.write([a_request(1, name="x"), Ended(1, WALL), a_request(2, name="x"), Ended(2, WALL)])
    past = journal.find(Key("ann", "x"))
    assert past is not None
    assert past.uid == 2


def test_a_packet_that_comes_again_is_known_by_its_number_and_payload(open_it: Open) -> None:
    journal = open_it()
    journal.write([a_request(1, packet_id=5), a_request(2, packet_id=6), a_request(3, packet_id=5)])
    assert journal.redelivered(5, a_request(3).digest) == Key("ann", "r3")
    assert journal.redelivered(5, a_request(1).digest) is None, "the number was used again since"
    assert journal.redelivered(6, a_request(2).digest) == Key("ann", "r2")
    assert journal.redelivered(7, a_request(2).digest) is None


def test_messages_come_from_anywhere_and_at_most_so_many(open_it: Open) -> None:
    journal = open_it()
    journal.write([a_request(1), a_request(2)])
    for seq in range(50):
        journal.write([a_message(1, seq), a_message(2, seq), Generated(1, 1, "x", ())])
    expected = payloads(a_message(1, seq) for seq in range(50))
    for first, most in [(0, 50), (0, 7), (7, 7), (14, 7), (3, 2), (49, 9), (50, 1), (0, 0), (14, 99), (0, 1)]:
        assert journal.messages(1, 1, first, most) == expected[first : first + most]


def test_what_stands_behind_a_gap_is_not_taken_for_the_rest(open_it: Open) -> None:
    journal = open_it()
    journal.write([a_request(1), a_message(1, 0), a_message(1, 2)])
    assert journal.messages(1, 1, 0, 10) == payloads([a_message(1, 0)])
    journal.close(clean=False)
    journal = open_it()
    assert journal.restored().unfinished[0].said == (a_message(1, 0),)
    journal.write([a_message(1, 1), replace(a_message(1, 2), payload=b"new"), Ended(1, WALL)])
    assert [seq for seq, _ in journal.messages(1, 1, 0, 10)] == [0, 1, 2]


def test_a_withdrawn_request_was_never_there_but_its_number_is_used_up(open_it: Open) -> None:
    journal = open_it()
    journal.write([a_request(8, packet_id=1), a_message(8, 0)])
    journal.write([Withdrawn(8)])
    assert journal.redelivered(1, a_request(8).digest) is None
    assert journal.messages(8, 1, 0, 9) == []
    journal.write([a_message(8, 1), Ended(8, WALL), Delivered(8), Standing(8, 2), Generated(8, 2, "x", ())])
    journal.close(clean=False)
    assert open_it().restored() == Restored(last_uid=8)


def test_undelivered_requests_are_restored_while_they_are_remembered(open_it: Open) -> None:
    journal = open_it()
    for uid in (1, 2, 3):
        journal.write(a_past(uid, wall=WALL + uid))
    journal.write([Delivered(2)])
    journal.close(clean=True)
    journal = open_it(wall=WALL + 5)
    assert [past.uid for past in journal.restored().undelivered] == [1, 3]
    journal.close(clean=True)
    assert [past.uid for past in open_it(wall=WALL + KEEP_S + 2).restored().undelivered] == [3]


def test_requests_are_forgotten_in_portions_when_their_time_is_over(open_it: Open) -> None:
    journal = open_it()
    for uid in range(1, 51):
        assert journal.write(a_past(uid, wall=WALL + uid)) is None
    journal.write([a_request(51)])
    assert journal.tidy(WALL + KEEP_S) == WALL + KEEP_S + 1, "nothing is due"
    assert journal.find(Key("ann", "r1")) is not None
    left = 50
    while (due := journal.tidy(WALL + KEEP_S + 45)) is not None and due <= WALL + KEEP_S + 45:
        now_left = sum(journal.find(Key("ann", f"r{uid}")) is not None for uid in range(1, 51))
        assert 0 < left - now_left <= 20
        left = now_left
    assert due == WALL + KEEP_S + 46
    assert [uid for uid in range(1, 51) if journal.messages(uid, 1, 0, 1)] == [46, 47, 48, 49, 50]
    journal.close(clean=True)
    assert open_it().restored().last_uid == 51


def test_the_number_of_the_next_request_is_right_after_all_were_forgotten(open_it: Open) -> None:
    journal = open_it()
    journal.write(a_past(7))
    assert journal.tidy(WALL + KEEP_S) is None
    journal.close(clean=True)
    assert open_it().restored().last_uid == 7


def test_messages_of_a_silent_request_are_found_after_the_newest_rows_were_forgotten(open_it: Open) -> None:
    journal = open_it()
    journal.write(a_past(1, messages=20))
    journal.write([a_request(2)])
    journal.tidy(WALL + KEEP_S)
    journal.close(clean=False)
    journal = open_it()
    journal.write([a_message(2, 0)])
    assert journal.messages(2, 1, 0, 9) == payloads([a_message(2, 0)])


def test_a_clock_that_went_back_does_not_make_the_memory_longer(open_it: Open) -> None:
    journal = open_it(wall=WALL * 2)
    journal.write(a_past(1, wall=WALL * 2))
    journal.close(clean=True)
    assert open_it().tidy(WALL) == WALL + KEEP_S


def test_ten_thousand_requests_are_kept_found_and_forgotten(open_it: Open) -> None:
    journal = open_it()
    for start in range(0, 10_000, 100):
        rows = [row for uid in range(start + 1, start + 101) for row in a_past(uid, wall=WALL + uid)]
        assert journal.write(rows) is None
    journal.close(clean=True)
    journal = open_it()
    assert len(journal.restored().undelivered) == 10_000
    assert journal.messages(5000, 1, 0, 9) == payloads(a_message(5000, seq) for seq in range(3))
    full = journal.size()
    calls = 0
    while journal.tidy(WALL + 20_000 + KEEP_S) is not None:
        calls += 1
    assert calls >= 499
    assert journal.find(Key("ann", "r5000")) is None
    journal.close(clean=True)
    assert open_it().size() < full / 20


def test_in_memory_it_answers_a_sync_at_once_and_leaves_no_trace(open_it: Open, tmp_path: Path) -> None:
    mailbox = Mailbox()
    journal = open_it(None, mailbox)
    assert journal.write(a_past(1)) is None
    journal.sync(4)
    assert mailbox.get() == Synced(4)
    assert journal.find(Key("ann", "r1")) is not None
    assert journal.size() > 0
    journal.close(clean=True)
    assert not list(tmp_path.iterdir())


def test_a_question_to_a_journal_that_cannot_be_read_finds_nothing(
    open_it: Open, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_it()
    journal.write(a_past(1))
    journal._db.execute("DROP TABLE messages")
    journal._db.execute("DROP TABLE requests")
    assert journal.messages(1, 1, 0, 9) == []
    assert journal.find(Key("ann", "r1")) is None
    assert journal.redelivered(1, b"") is None
    assert len(caplog.records) == 3
    journal._db.execute("DROP TABLE standings")
    assert journal.tidy(WALL + KEEP_S) == WALL + KEEP_S + 60


# --- against a dictionary -------------------------------------------------------------------------------------------


class Model:
    """What a journal is, in dictionaries."""

    def __init__(self) -> None:
        self.requests: dict[int, NewRequest] = {}
        self.standings: dict[int, Standing] = {}
        self.said: dict[int, list[Said]] = {}
        self.generated: dict[int, list[Generated]] = {}
        self.ended: dict[int, float] = {}
        self.delivered: set[int] = set()
        self.last_uid = 0

    def write(self, row: Row) -> None:
        uid = row.uid
        match row:
            case NewRequest():
                self.requests[uid] = row
                self.standings[uid] = Standing(uid, row.gen)
                self.said[uid], self.generated[uid] = [], []
                self.last_uid = uid
            case Said():
                self.said[uid].append(row)
            case Generated():
                self.generated[uid].append(row)
            case Standing():
                if row.gen > self.standings[uid].gen:
                    self.said[uid], self.generated[uid] = [], []
                self.standings[uid] = row
            case Ended():
                self.ended[uid] = row.wall
            case Delivered():
                self.delivered.add(uid)
            case Withdrawn():
                self.forget(uid)

    def forget(self, uid: int) -> None:
        del self.requests[uid], self.standings[uid], self.said[uid], self.generated[uid]
        self.ended.pop(uid, None)

    def tidy(self, wall: float) -> None:
        for uid in [uid for uid, ended in self.ended.items() if ended + KEEP_S <= wall]:
            self.forget(uid)

    def past(self, uid: int) -> Past:
        request, said = self.requests[uid], self.said[uid]
        confirmed = max((one.confirmed for one in said), default=0)
        gen = self.standings[uid].gen
        return Past(
            uid, request.key, request.digest, request.topic, request.correlation, gen, len(said), confirmed
        )  # fmt: skip

    def restored(self, wall: float) -> Restored:
        live = sorted(set(self.requests) - set(self.ended))
        return Restored(
            last_uid=self.last_uid,
            unfinished=tuple(
                Unfinished(self.requests[uid], self.standings[uid], tuple(self.said[uid]), tuple(self.generated[uid]))
                for uid in live
            ),
            undelivered=tuple(
                self.past(uid)
                for uid in sorted(self.ended)
                if uid not in self.delivered and self.ended[uid] + KEEP_S > wall
            ),
        )

    def check(self, journal: Journal) -> None:
        newest: dict[Key, int] = {}
        for uid in sorted(self.ended):
            newest[self.requests[uid].key] = uid
        for key in {request.key for request in self.requests.values()}:
            uid = newest.get(key, 0)
            assert journal.find(key) == (self.past(uid) if uid else None)
        for uid, said in self.said.items():
            gen = self.standings[uid].gen
            assert journal.messages(uid, gen, 0, 1000) == payloads(said)
            half = len(said) // 2
            assert journal.messages(uid, gen, half, 2) == payloads(said[half : half + 2])


@given(st.data())
@settings(max_examples=40)
def test_it_is_what_a_dictionary_is(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("model") / "journal.db"
    model, uids, wall = Model(), itertools.count(1), WALL
    journal = open_journal(path)
    try:
        for _ in range(data.draw(st.integers(1, 12))):
            batch: list[Row] = []
            for what in data.draw(st.lists(st.sampled_from("nnssssgrtedw"), min_size=1, max_size=12)):
                row = _draw_row(what, model, uids, wall, data)
                if row is not None:
                    model.write(row)
                    batch.append(row)
            assert journal.write(batch) is None
            match data.draw(st.sampled_from(["go on", "check", "restart", "tidy"])):
                case "check":
                    model.check(journal)
                case "restart":
                    journal.close(clean=data.draw(st.booleans()))
                    journal = open_journal(path, wall=wall)
                    assert journal.restored() == model.restored(wall)
                case "tidy":
                    wall += 400
                    model.tidy(wall)
                    while (due := journal.tidy(wall)) is not None and due <= wall:
                        pass
        model.check(journal)
    finally:
        journal.close(clean=False)


def _draw_row(what: str, model: Model, uids: itertools.count[int], wall: float, data: st.DataObject) -> Row | None:
    live = sorted(set(model.requests) - set(model.ended))
    if what == "n":
        name = data.draw(st.sampled_from(["x", "y", "z"]))
        packet_id = data.draw(st.one_of(st.none(), st.integers(1, 3)))
        return a_request(next(uids), name=name, packet_id=packet_id, payload=data.draw(st.binary(max_size=2000)))
    if what == "d":
        over = sorted(set(model.ended) - model.delivered)
        return Delivered(data.draw(st.sampled_from(over))) if over else None
    if not live:
        return None
    uid = data.draw(st.sampled_from(live))
    standing, seq = model.standings[uid], len(model.said[uid])
    match what:
        case "s":
            size = data.draw(st.integers(1, 3000))
            return a_message(uid, seq, gen=standing.gen, confirmed=data.draw(st.integers(0, seq)), size=size)
        case "g":
            return Generated(uid, standing.gen, data.draw(st.text(max_size=9)), (1, 2))
        case "r":
            return Standing(uid, standing.gen + 1, begun_with=0, resumed=standing.resumed)
        case "t":
            return replace(standing, begun_with=seq, fruitless=standing.fruitless + 1, suspected_at=seq)
        case "e":
            return Ended(uid, wall)
        case _:
            return Withdrawn(uid)
