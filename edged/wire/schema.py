"""JSON Schemas of the contract, generated from the models: `python -m edged.wire.schema docs/schema` writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from edged.wire.errors import ErrorCode
from edged.wire.messages import (
    Accepted,
    Chunk,
    Error,
    Event,
    Final,
    NodeMetrics,
    Progress,
    Reasoning,
    Status,
    ToolCall,
    reply_adapter,
)
from edged.wire.request import Control, Request

Schema: TypeAlias = dict[str, Any]

#: What the daemon says, by the name of its schema. Consumers pass over unknown fields: these schemas allow them.
_SAID: dict[str, type[BaseModel]] = {
    "accepted": Accepted,
    "progress": Progress,
    "chunk": Chunk,
    "reasoning": Reasoning,
    "tool_call": ToolCall,
    "final": Final,
    "error": Error,
    "status": Status,
    "metrics": NodeMetrics,
    "event": Event,
}
#: What the validators of a request say across fields: one kind of input, and what does not go with it.
_REQUEST_RULES: Schema = {
    "oneOf": [
        {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
        {"required": ["messages"], "properties": {"messages": {"type": "array"}}},
    ],
    "allOf": [
        {
            "if": {"required": ["messages"], "properties": {"messages": {"type": "array"}}},
            "then": {"properties": {"system": {"type": "null"}, "raw": {"const": False}}},
        },
        {
            "if": {"required": ["raw"], "properties": {"raw": {"const": True}}},
            "then": {"properties": {"system": {"type": "null"}}},
        },
    ],
}


class _Plain(GenerateJsonSchema):
    """Without titles that only repeat the fields' names."""

    def field_title_should_be_set(self, schema: object) -> bool:
        del schema
        return False


class _Said(_Plain):
    """The schema of what `payload()` writes: a field without a value is left out, every other one is there."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_is_required(
        self,
        field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField,
        total: bool,  # noqa: ARG002 - pydantic's signature
    ) -> bool:
        inner = field["schema"]
        return inner["type"] != "default" or inner.get("default", ...) is not None


def schemas() -> dict[str, Schema]:
    """The JSON Schema (draft 2020-12) of every message, by name.

    `request` and `control` are the JSON objects that a consumer may publish (plain text is allowed besides) and refuse
    unknown fields; JSON Schema cannot tell 1.0 from 1, the daemon can: whole numbers are written without a point.
    `reply` is any message of a reply stream. `error_code` is the list of codes; `error` says what follows from each.
    """
    made: dict[str, Schema] = {
        "request": Request.model_json_schema(schema_generator=_Plain) | _REQUEST_RULES,
        "control": Control.model_json_schema(schema_generator=_Plain),
        "reply": reply_adapter.json_schema(schema_generator=_Said) | {"title": "Reply"},
        "error_code": TypeAdapter(ErrorCode).json_schema(),
    }
    made |= {name: model.model_json_schema(schema_generator=_Said) for name, model in _SAID.items()}
    for schema in (made["error"], *(m["$defs"]["Error"] for m in made.values() if "Error" in m.get("$defs", {}))):
        schema["oneOf"] = [_error_rule(code) for code in ErrorCode]
    return {
        name: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"urn:edged:v1:{name}",
            **schema,
        }
        for name, schema in made.items()
    }


def _error_rule(code: ErrorCode) -> Schema:
    fixed = {"code": code.value, "status": code.status, "retryable": code.retryable}
    return {"properties": {name: {"const": value} for name, value in fixed.items()}}


def rendered() -> dict[str, str]:
    """The files of a schema directory: text by file name."""
    return {
        f"{name}.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n" for name, schema in schemas().items()
    }


def main(arguments: list[str]) -> int:
    """Write the schemas into the directory that is named; the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m edged.wire.schema DIRECTORY\n")
        return 2
    directory = Path(arguments[0])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in rendered().items():
        (directory / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
