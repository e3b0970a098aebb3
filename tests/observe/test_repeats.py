"""A log that is not filled by a model that cannot be loaded."""

from __future__ import annotations

from edged.observe.repeats import Repeats


def test_what_is_said_at_every_attempt_is_news_at_the_first_and_after_it_was_loaded() -> None:
    repeats = Repeats()
    for expected in (True, False, False):
        assert repeats.is_news("m", "no such tensor") is expected
        assert repeats.is_news("other", "no such tensor")
        repeats.lost("m")
        repeats.ready("other")
    assert repeats.is_news("m", "no memory")
    repeats.ready("m")
    for _ in range(2):
        assert repeats.is_news("m", "a step failed")
    repeats.lost("m")
    assert repeats.is_news("m", "no such tensor")


def test_what_was_not_said_the_last_time_is_news_again() -> None:
    repeats = Repeats()
    assert repeats.is_news("m", "no such tensor")
    repeats.lost("m")
    repeats.lost("m")
    assert repeats.is_news("m", "no such tensor")
