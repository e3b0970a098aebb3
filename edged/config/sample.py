"""The documentation of the settings, made from the settings: the commented sample file, and docs/configuration.md."""

from __future__ import annotations

import json
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edged.config.settings import Defaults, Model, Settings

_WIDTH = 100
_HEAD = """\
# Configuration of edged. Every key is optional: what stands here behind # are the defaults.
# To change one, remove the # in front of it; the section's line above it stays as it is.
# A value may also come from the environment: EDGED_MQTT__HOST sets host in [mqtt].
# To check the file: edged check-config --config FILE
"""


def sample() -> str:
    """A commented TOML file with every key and its default.

    It loads to the defaults, as it stands as well as with every key uncommented.
    """
    lines = [_HEAD]
    for header, about, values in _sections(Settings()):
        lines += [_prose(about), header]
        for name, field in type(values).model_fields.items():
            if not _is_section(field):
                lines += ["", _prose(_sentence(field)), f"#{name} = {toml(getattr(values, name))}"]
        lines.append("")
    return "\n".join(lines)


def summary(settings: Settings, origin: Callable[[tuple[str | int, ...]], str | None]) -> str:
    """The settings in force as TOML, with where each comes from that is no default. There are no secrets in it."""
    lines = []
    number = -1
    for header, _, values in _sections(settings):
        place: tuple[str | int, ...] = (header.strip("[]"),)
        if isinstance(values, Model | Defaults):
            number += isinstance(values, Model)
            place = ("models", number, *(("defaults",) if isinstance(values, Defaults) else ()))
        lines.append(header)
        for name, field in type(values).model_fields.items():
            if not _is_section(field):
                where = origin((*place, name))
                lines.append(f"{name} = {toml(getattr(values, name))}" + (f"  # {where}" if where else ""))
        lines.append("")
    return "\n".join(lines)


def markdown() -> str:
    """The page docs/configuration.md."""
    parts = [_PAGE]
    for header, about, values in _sections(Settings()):
        parts.append(f"## `{header}`\n\n{about}\n")
        parts.append("| key | default | allowed | meaning |\n|---|---|---|---|")
        for name, field in type(values).model_fields.items():
            if not _is_section(field):
                shown = _extra(field, "shown") or f"`{toml(getattr(values, name))}`"
                unit = f" {unit}" if (unit := _extra(field, "unit")) else ""
                about_key = (field.description or "").replace("|", "\\|")
                parts.append(f"| `{name}` | {shown}{unit} | {_allowed(field)} | {about_key} |")
        parts.append("")
    parts += ["## The sample file\n", "`edged config` prints it, with this machine's own defaults.", ""]
    return "\n".join(parts)


_PAGE = """\
<!-- Generated from edged/config/settings.py by `python -m edged.config docs/configuration.md`; do not edit. -->
# Configuration

Every setting has a default: `edged run` works without a configuration. Values are taken from, strongest first:

1. the command line's options;
2. environment variables: `EDGED_` + section + two underscores + key, e.g. `EDGED_MQTT__HOST=broker.lan`;
   lists are JSON, e.g. `EDGED_MODELS='[{"alias": "big", "path": "/srv/big.gguf"}]'`;
3. a TOML file: `--config FILE`, else `$EDGED_CONFIG`, else `/etc/edged/edged.toml` if it exists;
4. the defaults below.

```sh
edged config > edged.toml                 # a commented file with every key
edged check-config --config edged.toml    # what is in force and where it comes from, or what is wrong
edged run --config edged.toml
```

A key that does not exist, a value out of bounds or a named file that is missing is an error: the daemon says which
and exits with code 78. An `EDGED_…` variable that is no setting is only warned about if it has no `__` in it. An empty
text (`""`) means none.

The broker's password stands in a file of its own (`password_file`), or comes as systemd's credential
`mqtt-password`; it is never an argument of a command, and never in the log.
"""


def toml(value: Any) -> str:
    """A setting's value as TOML writes it."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str | Path):  # JSON's escapes are TOML's, but for DEL
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    return repr(value)


def _sections(settings: Settings) -> Iterator[tuple[str, str, BaseModel]]:
    """Header, description and values of every section."""
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if name == "models":
            for model in value:
                yield "[[models]]", Model.__doc__ or "", model
                yield "[models.defaults]", Defaults.__doc__ or "", model.defaults
        else:
            yield f"[{name}]", type(value).__doc__ or "", value


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _extra(field: FieldInfo, name: str) -> str:
    return str(field.json_schema_extra.get(name, "")) if isinstance(field.json_schema_extra, dict) else ""


def _prose(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _sentence(field: FieldInfo) -> str:
    """Meaning, and in brackets bounds and unit."""
    text = field.description or ""
    text = text[:1].upper() + text[1:].rstrip(".") + "."
    unit = _extra(field, "unit")
    return f"{text} ({_allowed(field)}{f', {unit}' if unit else ''})".replace("`", "")


def _allowed(field: FieldInfo) -> str:
    """The type and its bounds, in words."""
    kind = field.annotation
    options = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{toml(option)}`" for option in options)
    if type(None) in options:  # which is written as the empty text
        kind = options[0]
    if kind is bool:
        return "`true`, `false`"
    if kind in (int, float):
        return f"{'integer' if kind is int else 'number'}{_range(field)}"
    return "file" if kind is Path else "list of texts" if typing.get_origin(kind) is tuple else "text"


def _range(field: FieldInfo) -> str:
    bounds = {n: getattr(m, n) for m in field.metadata for n in ("ge", "gt", "le") if hasattr(m, n)}
    low = f"from {bounds['ge']}" if "ge" in bounds else f"above {bounds['gt']}"
    return f" {low} to {bounds['le']}"
