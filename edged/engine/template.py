"""From a conversation to tokens: the model's own chat template, with template text and user text tokenised apart.

The template runs in Jinja's immutable sandbox (a GGUF file is data from the internet: CVE-2024-34359). It never sees
what users wrote, but a placeholder for each message. Control tokens are looked for in the template's own text alone;
everything between two of them, user text included, is then tokenised as one piece of plain text. So `<|im_end|>` typed
by a user stays text, and a conversation without such tricks gets the same tokens as if it had been tokenised whole.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: llama.cpp's llama_token_attr: white space before or after the token belongs to it.
_LSTRIP, _RSTRIP = 1 << 7, 1 << 8


class PromptError(ValueError):
    """The conversation cannot be put to this model; the message is for the consumer."""


class TemplateVocabulary(Protocol):
    """What of a vocabulary the template needs."""

    bos: int
    eos: int
    adds_bos: bool

    @property
    def control_tokens(self) -> dict[str, int]:
        """Control tokens by their text."""

    def text(self, token: int) -> str:
        """The token as the vocabulary names it."""

    def attributes(self, token: int) -> int:
        """llama.cpp's `llama_token_attr` bits."""

    def tokenize(self, text: str) -> list[int]:
        """Tokens of plain text."""


class ChatTemplate:
    """Turns messages into the tokens that the model was trained on.

    Args:
        source: the Jinja template from the model file; None where it has none.
    """

    def __init__(self, source: str | None, vocabulary: TemplateVocabulary) -> None:
        self._vocabulary = vocabulary
        texts = sorted(vocabulary.control_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts))) if texts else None
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source) if source else None
        except TemplateError as error:
            raise PromptError(f"the model's chat template is no valid Jinja: {error}") from error

    def tokenize(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Tokens of a conversation of (role, content), up to where the model's answer begins.

        Raises:
            PromptError: the model has no template, or its template refuses or drops what it was given.
        """
        if self._template is None:
            raise PromptError("this model has no chat template: send `prompt` with `raw`: true to complete it as it is")
        mark = f"\ue000{secrets.token_hex(8)}."
        names = [f"{mark}{i}\ue001" for i in range(len(messages))]
        try:
            rendered = self._template.render(
                messages=[{"role": role, "content": name} for (role, _), name in zip(messages, names, strict=True)],
                bos_token=self._vocabulary.text(self._vocabulary.bos),
                eos_token=self._vocabulary.text(self._vocabulary.eos),
                add_generation_prompt=True,
            )
        except PromptError:
            raise
        except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError) as error:
            raise PromptError(f"the model's chat template refuses this conversation: {error}") from error
        parts = re.split(f"{re.escape(mark)}(\\d+)\ue001", rendered)
        dropped = [role for i, (role, _) in enumerate(messages) if str(i) not in parts[1::2]]
        if dropped:
            raise PromptError(f"the model's chat template has no place for a message with role `{dropped[0]}`")
        return self._tokens(parts, [content for _, content in messages])

    def raw(self, prompt: str) -> list[int]:
        """Tokens of a prompt that is completed as it stands, the beginning-of-text token before it where due."""
        return self._begin(self._vocabulary.tokenize(prompt))

    def _tokens(self, parts: list[str], contents: list[str]) -> list[int]:
        """`parts` alternates template text and the number of the message whose content stands there."""
        tokens: list[int] = []
        plain: list[str] = []  # what has come since the last control token
        strip = False

        def flush() -> None:
            text = "".join(plain)
            plain.clear()
            if text:
                tokens.extend(self._vocabulary.tokenize(text))

        for i, part in enumerate(parts):
            if i % 2:
                plain.append(contents[int(part)])
                strip = False
                continue
            start = 0
            for match in self._control.finditer(part) if self._control else ():
                before, control = part[start : match.start()], self._vocabulary.control_tokens[match.group()]
                start = match.end()
                attributes = self._vocabulary.attributes(control)
                before = before.lstrip() if strip else before
                plain.append(before.rstrip() if attributes & _LSTRIP else before)
                flush()
                tokens.append(control)
                strip = bool(attributes & _RSTRIP)
            rest = part[start:]
            plain.append(rest.lstrip() if strip else rest)
            strip = strip and not rest.strip()
        flush()
        return self._begin(tokens)

    def _begin(self, tokens: list[int]) -> list[int]:
        bos = self._vocabulary.bos
        return [bos, *tokens] if self._vocabulary.adds_bos and tokens[:1] != [bos] else tokens


def _raise_exception(message: str) -> NoReturn:
    raise PromptError(f"the model's chat template refuses this conversation: {message}")


def _strftime_now(form: str) -> str:
    return datetime.now(tz=UTC).astimezone().strftime(form)


def _tojson(value: Any, indent: int | None = None) -> str:
    """JSON without HTML's escapes, as the templates' authors have it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
