"""A request as the consumer writes it, checked and made ready to be sent."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from edged.client.errors import InvalidRequest
from edged.client.settings import random_name
from edged.wire.errors import RequestError
from edged.wire.request import Message, Priority, parse_request

#: What the consumer asks: the user's text, or the conversation so far.
Prompt = str | Sequence[Message | Mapping[str, str]]

#: Fields that belong to the client: it chooses the reply topic, and `stream` or `ask` by the method called.
_OWN = {
    "prompt": "give it as the first argument",
    "messages": "give them as the first argument",
    "stream": "call `stream()` for pieces as they come, or `ask()` for the whole answer",
    "reply_to": "the client listens on its own reply topic",
}


class Fields(TypedDict, total=False):
    """The fields of a request besides its prompt, as keywords (docs/protocol.md, section 2)."""

    id: str
    system: str
    raw: bool
    model: str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: str | list[str]
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    priority: Priority
    timeout_s: float
    progress: bool
    include_text: bool
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class Order:
    """A request that has been checked.

    Attributes:
        id: names it; made here where the consumer gave none.
        payload: what the PUBLISH carries.
        timeout_s: of the whole exchange, where the request says it, seconds.
    """

    id: str
    payload: bytes
    timeout_s: float | None


def compose(prompt: object, fields: Mapping[str, object]) -> Order:
    """Check a request by the same code as the daemon's, and give it an id.

    Args:
        prompt: a `Prompt`, if all is well.
        fields: `Fields`, if all is well.

    Raises:
        InvalidRequest: with the words that the daemon would use.
    """
    for name in fields:
        if name in _OWN:
            raise InvalidRequest(f"`{name}` is no keyword here: {_OWN[name]}", field=name)
    body: dict[str, object] = {"id": random_name()}
    if isinstance(prompt, str):
        body["prompt"] = prompt
    else:  # what is no list of messages either is refused below
        body["messages"] = [_plain(turn) for turn in prompt] if isinstance(prompt, Sequence) else prompt
    body |= fields
    try:
        payload = json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        what = f"the lone surrogate U+{ord(error.object[error.start]):04X}, which stands for bytes that are no UTF-8"
        raise InvalidRequest(f"the request is no text: it has {what}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the request cannot be written as JSON: {error}") from None
    try:
        request = parse_request(payload, max_bytes=sys.maxsize)
    except RequestError as error:
        raise InvalidRequest(error.message, field=error.field, code=error.code) from None
    if request.id is None:
        raise InvalidRequest("`id`: null is no id; leave it out to have one made", field="id")
    return Order(request.id, request.model_dump_json(exclude_unset=True).encode(), request.timeout_s)


def _plain(turn: object) -> object:
    return turn.model_dump() if isinstance(turn, Message) else turn
