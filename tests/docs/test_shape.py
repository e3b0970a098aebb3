"""The tests of the pages would notice when a page is wrong."""

from __future__ import annotations

import pytest

from tests.docs import shape

FINAL = 'reply/1 {"id":"1","gen":1,"seq":9,"type":"final","finish_reason":"length","text":"Hi","usage":{"n":1}}'


@pytest.mark.parametrize(
    "shown",
    [
        FINAL,
        "…",
        "…\n" + FINAL,
        FINAL.replace('"Hi"', '"something else"').replace("9", "12"),
        FINAL.replace("length", "stop"),
        'reply/1 {"id":"1",…,"type":"final",…}',
        'reply/1 {…,"usage":{…}}',
        'reply/… {"text":"…",…}',
    ],
)
def test_a_true_picture(shown: str) -> None:
    assert shape.shows(shown, FINAL)


@pytest.mark.parametrize(
    "shown",
    [
        "",
        FINAL + "\n" + FINAL,
        FINAL.replace("reply", "answer"),
        FINAL.replace('"id":"1"', '"id":"2"'),
        FINAL.replace('"id":"1"', '"id":"6b00f3c2-1"'),
        FINAL.replace('"final"', '"chunk"'),
        FINAL.replace("length", "cancelled"),
        FINAL.replace('"gen":1', '"gen":0'),
        FINAL.replace(":9,", ':"9",'),
        FINAL.replace('"text":"Hi",', ""),
        FINAL.replace('"text":"Hi"', '"text":"Hi","mood":"good"'),
        FINAL.replace('{"n":1}', '{"n":1,"m":2}'),
        'reply/1 {"mood":"good",…}',
        "Hi",
    ],
)
def test_a_false_picture(shown: str) -> None:
    assert not shape.shows(shown, FINAL)


def test_an_id_that_the_daemon_made_is_shown_by_any_other() -> None:
    assert shape.shows('reply/6b00f3c2-1 {"id":"6b00f3c2-1"}', 'reply/6b010ea2-1f {"id":"6b010ea2-1f"}')
    assert not shape.shows('reply/6b00f3c2-1 {"id":"6b00f3c2-1"}', 'reply/mine {"id":"mine"}')


def test_what_is_shown_whole_is_told_from_what_is_not() -> None:
    assert shape.whole('a {"text":"…"}\n…\nb {"text":"x",…}\nplain') == ['{"text":"…"}']
