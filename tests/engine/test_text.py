"""Text comes out whole: characters that span tokens, and stop strings that do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.engine.text import TextStream

#: Few letters, so that stop strings come by, overlap and nearly come by; of different lengths in UTF-8.
_letters = st.sampled_from(["a", "b", "🐻"])
_stops = st.lists(st.text(_letters, min_size=1, max_size=5), max_size=4).map(tuple)


@st.composite
def _cut(draw: st.DrawFn, what: st.SearchStrategy[bytes]) -> list[bytes]:
    """Bytes in pieces as a tokenizer might cut them: anywhere, also into nothing."""
    raw = draw(what)
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=draw(st.sampled_from([2, len(raw)])))))
    return [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


def _utf8(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[bytes]]:
    return _cut(texts.map(str.encode))


@st.composite
def _stopped(draw: st.DrawFn) -> tuple[list[bytes], tuple[str, ...]]:
    """Stop strings, some of them parts of others, and a text in pieces that is made of them and of letters."""
    stops = draw(_stops)
    parts = draw(st.lists(st.sampled_from(stops), max_size=2)) if stops else []
    stops += tuple(part[draw(st.integers(0, len(part) - 1)) :][:3] for part in parts)
    words = st.sampled_from(stops) | _letters if stops else _letters
    return draw(_utf8(st.lists(words, max_size=8).map("".join))), stops


def _until_stopped(text: str, stops: tuple[str, ...]) -> str:
    """The rule, a character at a time: the stop that is complete first, the longest of those that end there."""
    for end in range(len(text) + 1):
        if ending := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, ending))]
    return text


def _held_back(text: str, stops: tuple[str, ...]) -> int:
    """The length of the longest end of `text` with which a stop string may begin."""
    return next(n for n in range(len(text), -1, -1) if n == 0 or any(stop.startswith(text[-n:]) for stop in stops))


@given(_utf8(st.text()))
def test_text_cut_anywhere_comes_out_as_it_was(pieces: list[bytes]) -> None:
    stream = TextStream()
    given_out = [stream.push(piece) for piece in pieces]
    assert "".join(given_out) == b"".join(pieces).decode()
    assert stream.end() == ""


@given(_stopped())
def test_text_ends_at_the_first_stop_string_however_it_is_cut(stopped: tuple[list[bytes], tuple[str, ...]]) -> None:
    pieces, stops = stopped
    stream, text = TextStream(stops), b"".join(pieces).decode()
    given_out = "".join(stream.push(piece) for piece in pieces) + stream.end()
    assert given_out == _until_stopped(text, stops)
    assert stream.stopped == any(stop in text for stop in stops)


@given(_stopped())
def test_nothing_is_held_back_but_what_may_begin_a_stop_string(stopped: tuple[list[bytes], tuple[str, ...]]) -> None:
    pieces, stops = stopped
    stream, given_out = TextStream(stops), ""
    for i, piece in enumerate(pieces):
        given_out += stream.push(piece)
        so_far = b"".join(pieces[: i + 1]).decode(errors="ignore")
        if stream.stopped:
            return
        assert given_out == so_far[: len(so_far) - _held_back(so_far, stops)]


@given(_cut(st.binary(max_size=40)), _stops)
def test_bytes_that_are_no_utf8_are_passed_over_and_nothing_raises(pieces: list[bytes], stops: tuple[str, ...]) -> None:
    stream, whole = TextStream(stops), TextStream(stops)
    given_out = "".join(map(stream.push, pieces)) + stream.end()
    assert given_out == whole.push(b"".join(pieces)) + whole.end()
    assert "\ufffd".encode() in b"".join(pieces) or "\ufffd" not in given_out


@given(_utf8(st.text()), st.binary())
def test_valid_text_is_untouched_by_nonsense_behind_it(pieces: list[bytes], nonsense: bytes) -> None:
    stream = TextStream()
    given_out = "".join(map(stream.push, [*pieces, nonsense]))
    assert given_out.startswith(b"".join(pieces).decode())


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a\xffb", "ab"),
        (b"\xc3(", "("),  # a character that was begun, then something else
        (b"\xe4\xb8\xe4\xb8\xad", "中"),
        (b"\x80\x80", ""),
    ],
)
def test_broken_characters_are_passed_over(raw: bytes, text: str) -> None:
    at_once, bytewise = TextStream(), TextStream()
    assert at_once.push(raw) == text
    assert "".join(bytewise.push(raw[i : i + 1]) for i in range(len(raw))) == text


@pytest.mark.parametrize("character", ["é", "中", "🐻"])
def test_an_unfinished_character_at_the_end_is_dropped(character: str) -> None:
    raw = character.encode()
    for length in range(1, len(raw)):
        stream = TextStream(("stop",))
        assert stream.push(b"so far" + raw[:length]) == "so far"
        assert stream.end() == ""


def test_of_overlapping_stop_strings_the_one_that_is_complete_first_counts() -> None:
    for pieces in ([b"xabcd"], [b"xabc", b"d"], [b"x", b"a", b"b", b"c", b"d"]):
        stream = TextStream(("abcd", "bc"))
        assert "".join(map(stream.push, pieces)) + stream.end() == "xa"


def test_of_stop_strings_that_end_together_the_longest_counts() -> None:
    for pieces in ([b"xabc"], [b"xab", b"c"]):
        stream = TextStream(("c", "abc", "bc"))
        assert "".join(map(stream.push, pieces)) + stream.end() == "x"


def test_what_was_held_back_comes_at_the_end_if_the_stop_string_did_not() -> None:
    stream = TextStream(("<end>",))
    assert stream.push(b"1 <2 <en") == "1 <2 "
    assert stream.end() == "<en"
    assert stream.end() == ""


def test_after_a_stop_string_nothing_comes_any_more() -> None:
    stream = TextStream(("\n",))
    assert stream.push(b"one\ntwo") == "one"
    assert stream.stopped
    assert stream.push(b"three") == ""
    assert stream.end() == ""


def test_a_stop_string_may_begin_and_end_within_tokens_and_characters() -> None:
    stream, raw = TextStream(("中🐻",)), "ab中🐻cd".encode()
    assert "".join(stream.push(raw[i : i + 3]) for i in range(0, len(raw), 3)) == "ab"
    assert stream.stopped
