"""Sentences from pydantic's errors: which key, which value, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edged.config.settings import Defaults, Model, Settings

_NOT = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text in quotes",
    "path_type": "a file's path in quotes",
    "tuple_type": 'a list like ["a", "b"]',
}
_BOUNDS = {
    "greater_than_equal": ("ge", "is too small: at least"),
    "greater_than": ("gt", "is too small: it must be above"),
    "less_than_equal": ("le", "is too large: at most"),
    "less_than": ("lt", "is too large: it must be below"),
    "string_too_long": ("max_length", "is too long: the most characters allowed are"),
    "too_long": ("max_length", "has too many entries: the most allowed are"),
}


def sentences(error: ValidationError) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """For each error its place and a sentence that starts with the key."""
    details = error.errors(include_url=False)
    for detail in details:
        place = detail["loc"]
        if detail["type"] == "too_short" and any(d["loc"][: len(place)] == place != d["loc"] for d in details):
            continue  # pydantic counts the good entries alone; that there are bad ones has been said
        label = _label(place)
        yield place, f"{label}: {_reason(detail)}" if label else _reason(detail)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or what there is where nothing is near."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"


def _label(place: tuple[str | int, ...]) -> str:
    """`[mqtt] port`, `[[models]] #2 defaults.stop, entry 1`."""
    if not place:
        return ""
    label, rest = f"[{place[0]}]", list(place[1:])
    if place[0] == "models":
        label = f"[[models]] #{int(rest.pop(0)) + 1}" if rest else "[[models]]"
    entry = ""
    if rest and isinstance(rest[-1], int):
        entry = f", entry {rest[-1] + 1}"
        rest.pop()
    return f"{label} {'.'.join(map(str, rest))}".rstrip() + entry


def _reason(detail: ErrorDetails) -> str:
    kind, value, place = detail["type"], _shown(detail["input"]), detail["loc"]
    if kind in ("too_short", "too_long") and isinstance(detail["input"], str):
        kind = f"string_{kind}"
    if kind == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":  # its value is not repeated: it may be a password in the wrong place
        return _unknown(str(place[-1]), _section(place[:-1]))
    if place == ("models",):
        return "each model has a section of its own that starts with [[models]], in double brackets; 1 to 16 of them"
    if kind == "model_type":
        return "this is a section, not a value: write [name] on a line, and its keys below"
    if kind in _NOT:
        return f"{value} is not {_NOT[kind]}"
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        limit = detail["ctx"][bound]
        return f"{value} {words} {int(limit) if limit == int(limit) else limit}"
    if kind == "literal_error":
        return f"{value} is none of {detail['ctx']['expected']}"
    if kind == "string_too_short":
        return "it is empty; give a value, or remove the key"
    return f"{value}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _unknown(name: str, section: type[BaseModel]) -> str:
    if "password" in name:
        return "passwords do not stand in the configuration; write it into a file and name that in password_file"
    return f"unknown key{suggestion(name, section.model_fields)}"


def _section(place: tuple[str | int, ...]) -> type[BaseModel]:
    if place[0] == "models":
        return Defaults if "defaults" in place else Model
    section = Settings.model_fields[str(place[0])].annotation
    return section if isinstance(section, type) and issubclass(section, BaseModel) else Settings


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
