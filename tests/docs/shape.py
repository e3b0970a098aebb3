"""Whether what a command printed is what a page shows of it.

`…` stands for what is left out: as a line of its own for any lines, in a JSON object for other fields, in text for any
text. JSON is compared by its shape: the same fields of the same types, and where a value follows from the protocol and
not from the model, the time or the machine, the same value.
"""

from __future__ import annotations

import json
import re
from typing import Any

MORE = "…"
#: Fields whose values the page has to tell as they are.
_EXACT = frozenset(
    {
        *("type", "phase", "gen", "finish_reason", "state", "protocol"),
        *("code", "status", "message", "retryable", "node", "topic", "model", "alias", "metadata"),
    }
)
#: An id that the daemon made.
_MADE_ID = re.compile(r"[0-9a-f]+-[0-9a-f]+")
#: JSON's strings, or a `…` between them.
_STRING_OR_MORE = re.compile(r'("(?:[^"\\]|\\.)*")|…')


def shows(shown: str, printed: str) -> bool:
    """Whether a page's text is a true picture of what was printed."""
    return _lines(shown.strip("\n").splitlines(), printed.strip("\n").splitlines())


def whole(shown: str) -> list[str]:
    """The JSON objects of a page's text that nothing was left out of."""
    objects = [line[line.index("{") :] for line in shown.splitlines() if "{" in line]
    return [text for text in objects if not any(not m[1] for m in _STRING_OR_MORE.finditer(text))]


def _lines(shown: list[str], printed: list[str]) -> bool:
    if not shown:
        return not printed
    if shown[0] == MORE:
        return any(_lines(shown[1:], printed[i:]) for i in range(len(printed) + 1))
    return bool(printed) and _line(shown[0], printed[0]) and _lines(shown[1:], printed[1:])


def _line(shown: str, printed: str) -> bool:
    before, brace, rest = shown.partition("{")
    if not brace:
        return _text(shown, printed)
    actual_before, brace, actual_rest = printed.partition("{")
    if not brace or not _text(before, actual_before):
        return False
    pattern = _STRING_OR_MORE.sub(lambda m: m[1] or f'"{MORE}":null', "{" + rest)
    return _value("", json.loads(pattern), json.loads("{" + actual_rest))


def _value(name: str, shown: Any, actual: Any) -> bool:
    if isinstance(shown, dict):
        if not isinstance(actual, dict):
            return False
        wanted = shown.keys() - {MORE}
        complete = MORE in shown or wanted == actual.keys()
        return complete and wanted <= actual.keys() and all(_value(key, shown[key], actual[key]) for key in wanted)
    if isinstance(shown, list):
        pairs = zip(shown, actual, strict=False)
        return isinstance(actual, list) and len(shown) == len(actual) and all(_value(name, a, b) for a, b in pairs)
    if isinstance(shown, str):
        return isinstance(actual, str) and _string(name, shown, actual)
    if isinstance(shown, bool) or shown is None or name in _EXACT:
        return bool(shown == actual)
    return isinstance(actual, int | float) and not isinstance(actual, bool)


def _string(name: str, shown: str, actual: str) -> bool:
    if name == "id":
        return bool(_MADE_ID.fullmatch(actual)) if _MADE_ID.fullmatch(shown) else shown == actual
    if name == "finish_reason" and shown == "stop":
        return actual in ("stop", "length")  # these tests have the model say little
    return name not in _EXACT or _text(shown, actual)


def _text(shown: str, actual: str) -> bool:
    """The same text, or the same around what was left out; a made id in a topic is any made id."""
    pattern = ".*".join(map(re.escape, shown.split(MORE)))
    return re.fullmatch(_MADE_ID.sub(lambda _: _MADE_ID.pattern, pattern.replace(r"\-", "-")), actual) is not None
