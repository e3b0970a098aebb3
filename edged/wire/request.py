"""What a consumer sends: requests and control messages (docs/protocol.md, sections 2 and 6)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import from_json, to_json

from edged.wire.errors import ErrorCode, RequestError
from edged.wire.topics import ID_PATTERN, is_id

#: The most messages that one request may carry.
MAX_MESSAGES = 1000
#: The most stop strings in one request, and the longest one in characters.
MAX_STOP, MAX_STOP_CHARS = 16, 256
#: The most entries of `metadata`, and the longest name and value in characters.
MAX_METADATA, MAX_METADATA_NAME, MAX_METADATA_VALUE = 16, 64, 256
#: llama.cpp takes this value of a 32-bit seed for "choose one".
_RANDOM_SEED = 2**32 - 1
#: The largest seed a request may name.
MAX_SEED = _RANDOM_SEED - 1

#: Fields of the contract that this version does not serve yet: refused by name, never ignored.
NOT_YET = frozenset({"preset", "session", "response_format", "tools", "tool_choice", "reasoning", "result_ttl_s"})

Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Role = Literal["system", "user", "assistant", "tool"]
Priority = Literal["low", "normal", "high"]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARS)]
MetadataName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_METADATA_NAME)]
MetadataValue = Annotated[str, StringConstraints(max_length=MAX_METADATA_VALUE)]

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = _STRICT

    role: Role
    content: str


class SamplingFields(BaseModel):
    """The sampling parameters, each None where the request leaves it to the model's defaults."""

    model_config = _STRICT

    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1, description="most tokens to generate")
    temperature: float | None = Field(None, ge=0, le=5, description="0 = always the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1, description="nucleus sampling; 1 = off")
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="keep the k likeliest tokens; 0 = off")
    min_p: float | None = Field(None, ge=0, le=1, description="drop tokens below this share of the likeliest; 0 = off")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="same seed, same request, alone: same text")
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP)] | None = Field(
        None, description="strings that end the answer; they are not part of it"
    )
    repeat_penalty: float | None = Field(None, gt=0, le=10, description="over the last 64 tokens; 1 = off")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="0 = off")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="0 = off")


class Request(SamplingFields):
    """The JSON payload of a `req` or `ask` topic. Unknown fields and wrong types are errors."""

    id: Id | None = Field(None, description="names the request; made by the daemon where it is missing")
    prompt: str | None = Field(None, min_length=1, description="the user's text; this or `messages`")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = Field(
        None, description="the conversation so far; this or `prompt`"
    )
    system: str | None = Field(None, description="system prompt that goes before `prompt`")
    raw: bool = Field(default=False, description="complete `prompt` as it stands, without the chat template")
    model: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="a model's alias; the first configured where it is missing"
    )
    priority: Priority = "normal"
    timeout_s: float | None = Field(None, gt=0, le=10**9, description="the whole exchange, queueing included, seconds")
    stream: bool = Field(default=True, description="false = only the final is sent")
    progress: bool = Field(default=False, description="`progress` messages while queued and during prefill")
    include_text: bool | None = Field(None, description="the whole text in the final; while <= 16 KiB where missing")
    reply_to: str | None = Field(None, description="reply topic; wins over the MQTT 5 Response Topic")
    metadata: Annotated[dict[MetadataName, MetadataValue], Field(max_length=MAX_METADATA)] | None = Field(
        None, description="short strings, echoed in `accepted` and `final`"
    )

    @model_validator(mode="after")
    def _one_kind_of_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            have = "neither" if self.prompt is None else "both"
            raise ValueError(f"one of `prompt` and `messages` is required, the request has {have}")
        if self.raw and (self.prompt is None or self.system is not None):
            raise ValueError("`raw` completes `prompt` as it stands: it goes with neither `messages` nor `system`")
        if self.messages is not None and self.system is not None:
            raise ValueError("`system` goes with `prompt`; in `messages` use a message with role `system`")
        return self

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The turns to render with the chat template, `system` and `prompt` turned into messages."""
        if self.messages is not None:
            return tuple(self.messages)
        system = () if self.system is None else (Message(role="system", content=self.system),)
        return (*system, Message(role="user", content=self.prompt or ""))

    @property
    def stops(self) -> tuple[str, ...] | None:
        """The stop strings as a tuple; None where the request names none."""
        if self.stop is None:
            return None
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


Operation = Literal["cancel", "pause", "resume", "replay"]


class Control(BaseModel):
    """The payload of a `ctl` topic; a bare word such as `cancel` means the same as `{"op":"cancel"}`."""

    model_config = _STRICT

    op: Operation
    from_seq: int | None = Field(None, ge=0, le=2**53 - 1, description="of `replay`: the first message; default 0")
    gen: int | None = Field(None, ge=1, le=2**53 - 1, description="of `replay`: the generation; default: the last")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("from_seq", "gen"):
            if self.op != "replay" and getattr(self, name) is not None:
                raise ValueError(f"`{name}` goes with `replay`, not with `{self.op}`")
        return self


def parse_request(payload: bytes, *, max_bytes: int) -> Request:
    """Read the payload of a `req` or `ask` topic: JSON if its first non-space character is `{`, else the prompt.

    Args:
        payload: the raw PUBLISH payload.
        max_bytes: the operator's limit on its size (`limits.max_payload`).

    Raises:
        RequestError: `too_large` or `bad_request`, with the field's name and whatever could still be read.
    """
    text = _text(payload, max_bytes)
    if not text.lstrip().startswith("{"):
        if not text:
            raise RequestError(ErrorCode.BAD_REQUEST, "the payload is empty: send a prompt as text, or a JSON object")
        return Request(prompt=text)
    try:
        return Request.model_validate_json(text)
    except ValidationError as error:
        raise _explained(error, text) from None


def parse_control(payload: bytes, *, max_bytes: int) -> Control:
    """Read the payload of a `ctl` topic: a bare word or a JSON object.

    Raises:
        RequestError: `too_large` or `bad_request`.
    """
    text = _text(payload, max_bytes).strip()
    try:
        if text.startswith("{"):
            return Control.model_validate_json(text)
        return Control.model_validate({"op": text})
    except ValidationError as error:
        raise _explained(error, text) from None


def _text(payload: bytes, max_bytes: int) -> str:
    if len(payload) > max_bytes:
        raise RequestError(
            ErrorCode.TOO_LARGE,
            f"the payload has {len(payload)} bytes; at most {max_bytes} are allowed (setting limits.max_payload)",
        )
    try:
        return payload.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise RequestError(
            ErrorCode.BAD_REQUEST,
            f"the payload is not UTF-8: byte 0x{payload[error.start]:02x} at offset {error.start}",
            decoded=False,
        ) from None


def _explained(error: ValidationError, text: str) -> RequestError:
    """One sentence from pydantic's list, naming the field, and what is still legible of the request."""
    first = error.errors(include_url=False, include_context=False)[0]
    kind, where = first["type"], _field(first["loc"])
    if kind == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return RequestError(
            ErrorCode.BAD_REQUEST,
            f"the payload starts with {{ but is no JSON object: {reason}",
            decoded=False,
        )
    if kind == "extra_forbidden":
        known = where in NOT_YET
        message = f"`{where}` is not supported by this version" if known else f"unknown field `{where}`"
    elif kind == "value_error":
        message = first["msg"].removeprefix("Value error, ")
    elif where == "op" and kind == "missing":
        message = f"`op` is missing; there are {', '.join(get_args(Operation))}"
    elif where == "stop":
        message = f"`stop`: a string or a list of at most {MAX_STOP} strings, each of 1 to {MAX_STOP_CHARS} characters"
    else:
        what = first["msg"][:1].lower() + first["msg"][1:]
        message = f"`{where}`: {what}{_instead(first['input'])}"
    legible = _legible(text)
    return RequestError(
        ErrorCode.BAD_REQUEST,
        message,
        field=where if first["loc"] else None,
        id=legible["id"] if isinstance(legible.get("id"), str) and is_id(legible["id"]) else None,
        reply_to=legible["reply_to"] if isinstance(legible.get("reply_to"), str) else None,
    )


def _field(location: tuple[int | str, ...]) -> str:
    """A dotted path in the request, without the names that pydantic gives to what is no field of the consumer's."""
    if location[:1] == ("stop",):  # a union: pydantic appends the branch it tried
        return "stop"
    if location[-1:] == ("[key]",):
        location = location[:-1]
    name = ".".join(map(str, location))[:100]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)  # it goes to logs and terminals


def _instead(value: object) -> str:
    """The value at fault where it is a number; never text, which may be someone's prompt."""
    if isinstance(value, int | float):
        number = to_json(value, inf_nan_mode="constants").decode()
        return f", not {number}" if len(number) <= 40 else f", not {number[:40]}…"
    return ""


def _legible(text: str) -> dict[str, Any]:
    try:
        value = from_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
