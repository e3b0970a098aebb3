"""What the pages show is true: their commands run, their programs too, and their JSON is the protocol's."""

from __future__ import annotations

import json
import tomllib
from contextlib import ExitStack
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from edged.config import Settings
from edged.wire.messages import Event, NodeMetrics, Status, reply_adapter
from edged.wire.request import Control, parse_request
from edged.wire.schema import schemas
from tests.docs import pages, shape
from tests.docs.playground import Listening, Playground

PAGES = ("README.md", "docs/protocol.md")
SECTIONS = [section for page in PAGES for section in pages.sections(page)]
FENCES = [(section, fence) for section in SECTIONS for fence in section.fences]


def _runs(section: pages.Section) -> bool:
    return any(f.language in ("sh", "python") and f.directive in ("", "listen") for f in section.fences)


@pytest.mark.model
@pytest.mark.broker
@pytest.mark.parametrize("section", [s for s in SECTIONS if _runs(s)], ids=str)
def test_commands_and_programs_do_what_the_page_shows(ground: Playground, section: pages.Section) -> None:
    printed = ""
    with ExitStack() as section_end, ExitStack() as running:
        section_end.callback(ground.settle)
        listening: Listening | None = None
        for fence in section.fences:
            match fence.language, fence.directive:
                case "sh", "listen":
                    running.close()
                    listening = ground.listen(fence.text)
                    running.callback(listening.stop)
                case "sh", "":
                    printed = ground.run(fence.text)
                case "python", "":
                    printed = ground.python(fence.text)
                    assert printed.strip(), "the program printed nothing"
                case "text", "output":
                    assert shape.shows(fence.text, printed), f"the page shows\n{fence.text}\n\nbut it was\n{printed}"
                case "text", "heard":
                    assert listening is not None, "nobody listens here"
                    listening.heard(fence.text)
                case _:
                    pass


@pytest.mark.parametrize(("section", "fence"), FENCES, ids=[f"{s}:{f.line}" for s, f in FENCES])
def test_every_fence_is_executed_or_says_why_not(section: pages.Section, fence: pages.Fence) -> None:
    del section
    known = {
        "sh": {"", "listen", "node", "none"},
        "python": {"", "none"},
        "text": {"heard", "output", "none"},
        "json": {""},
        "toml": {""},
    }
    assert fence.directive in known[fence.language]
    assert bool(fence.reason) == (fence.directive == "none")


def _of(*languages: str) -> list[pages.Fence]:
    return [fence for _, fence in FENCES if fence.language in languages]


def _objects() -> list[str]:
    """Every JSON object of the pages that is shown as a whole, those in outputs included."""
    in_outputs = [text for fence in _of("text") if fence.directive != "none" for text in shape.whole(fence.text)]
    return [fence.text for fence in _of("json")] + in_outputs


def _model(value: dict[str, Any]) -> tuple[str, type[BaseModel] | None]:
    """The name of the schema that an object has to meet, and its model; None for a message of a reply stream."""
    if "seq" in value:
        return "reply", None
    if "uptime_s" in value:
        return "metrics", NodeMetrics
    if "topic" in value:
        return "event", Event
    if "state" in value:
        return "status", Status
    return "control", Control


@pytest.mark.parametrize("text", _objects())
def test_json_is_of_the_protocol(text: str) -> None:
    value = json.loads(text)
    if "prompt" in value or "messages" in value:
        parse_request(text.encode(), max_bytes=Settings().limits.max_payload)
        jsonschema.validate(value, schemas()["request"])
        return
    name, model = _model(value)
    message: BaseModel = reply_adapter.validate_json(text) if model is None else model.model_validate_json(text)
    jsonschema.validate(value, schemas()[name])
    assert message.model_dump(mode="json", exclude_none=True) == value, "the page shows a field that does not exist"


def test_the_final_in_the_protocol_is_proven_by_its_own_figures() -> None:
    finals = [value for text in _objects() if (value := json.loads(text)).get("type") == "final" and value.get("text")]
    import zlib

    assert finals
    for final in finals:
        assert final["chars"] == len(final["text"])
        assert final["crc32"] == zlib.crc32(final["text"].encode())


@pytest.mark.parametrize("fence", _of("toml"), ids=lambda fence: str(fence.line))
def test_settings_are_settings(fence: pages.Fence) -> None:
    Settings(**tomllib.loads(fence.text))
