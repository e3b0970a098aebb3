"""The kinds of values that settings have, each with the check that refuses what is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from edged.wire.topics import Topics, check_publishable, is_id


def _blank_is_none(value: Any) -> Any:
    """TOML has no null and a variable cannot be unset from a file: the empty text says "none"."""
    return None if value == "" else value


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r} has a control character")
    return text


def _at_home(path: Path | None) -> Path | None:
    if path is None:
        return None
    _printable(str(path))
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{str(path)!r}: the home directory cannot be found out, give the whole path") from None


def _host(text: str) -> str:
    if "@" in text:  # mqtt://user:password@host: not repeated
        raise ValueError("a host name or address alone goes here; user and password go into username and password_file")
    if "/" in text or " " in text or re.fullmatch(r"[^:]*:\d+", text):
        raise ValueError(f"{text!r} is not a host name or address alone: the port goes into port, TLS is tls = true")
    return text


def _node_name(text: str) -> str:
    return Topics(node=text).node


def _topic_root(text: str) -> str:
    return Topics(node="n", root=text).root


def _filter(text: str) -> str:
    """Refuse what is no topic filter (MQTT 5.0, section 4.7), and placeholders that nothing fills."""
    levels = text.split("/")
    if any("#" in level and (level != "#" or i < len(levels) - 1) for i, level in enumerate(levels)):
        raise ValueError(f"{text!r}: # stands alone in a level, and in the last one")
    if any("+" in level and level != "+" for level in levels):
        raise ValueError(f"{text!r}: + stands alone in a level")
    plain = text.replace("{root}", "r").replace("{node}", "n")
    if "{" in plain or "}" in plain:
        raise ValueError(f"{text!r}: the placeholders are {{root}} and {{node}}, and there are no others")
    check_publishable(plain.replace("#", "x").replace("+", "x"))
    return text


def _alias(text: str) -> str:
    if text and not is_id(text):
        raise ValueError(f"{text!r} is not allowed: use 1 to 64 of A-Z a-z 0-9 _ . -")
    return text


def _version(value: Any) -> Any:
    return 5 if value == "5" else value


Text = Annotated[str, AfterValidator(_printable)]
OptionalText = Annotated[str | None, BeforeValidator(_blank_is_none)]
OptionalFile = Annotated[Path | None, BeforeValidator(_blank_is_none), AfterValidator(_at_home)]
Host = Annotated[Text, AfterValidator(_host), Field(min_length=1, max_length=255)]
NodeName = Annotated[str, AfterValidator(_node_name)]
TopicRoot = Annotated[str, AfterValidator(_topic_root)]
TopicFilter = Annotated[str, AfterValidator(_filter)]
#: Empty where it is to be made from the file's name.
Alias = Annotated[str, AfterValidator(_alias)]
Version = Annotated[Literal[5, "3.1.1"], BeforeValidator(_version)]
