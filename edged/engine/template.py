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
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Any, NoReturn, Protocol

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: llama.cpp's llama_token_attr: added by the model's makers; white space before or after the token belongs to it.
_USER_DEFINED, _LSTRIP, _RSTRIP = 1 << 4, 1 << 7, 1 << 8
#: What llama.cpp takes for white space there (C's isspace).
_SPACE = " \t\n\v\f\r"
#: CPU time that a template may use, seconds. Ordinary ones need milliseconds.
_MOST_CPU_S = 2.0
#: When that is over by the clock of the whole process, in which others may compute, it is looked at so often. Seconds.
_LOOK_S = 0.25


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

    Raises:
        PromptError: the template is no valid Jinja.
    """

    def __init__(self, source: str | None, vocabulary: TemplateVocabulary) -> None:
        self._vocabulary = vocabulary
        self._control = _any_of(vocabulary.control_tokens)
        # llama.cpp finds the tokens that a model's makers added (type user-defined) in plain text as well. Most are
        # words or white space, but some steer the model (`<think>`, `<|user|>`), and those are not for users to write.
        self._markers = _any_of(
            text
            for text, token in vocabulary.control_tokens.items()
            if vocabulary.attributes(token) & _USER_DEFINED and _steers(text, source or "")
        )
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            with _time_limit():
                self._template = environment.from_string(source) if source else None
        except Exception as error:  # it is a program by strangers: what it can raise is not known
            raise PromptError(f"the model's chat template is no valid Jinja: {_why(error)}") from error

    def prompt(self, messages: Sequence[tuple[str, str]], own: int = 0) -> tuple[list[int], int]:
        """Tokens of a conversation, up to where the model's answer begins, and how far they are the operator's words.

        Args:
            messages: the conversation, (role, content) each.
            own: so many of the first messages are the operator's.

        Returns:
            The tokens, and how many of the first are the same whatever anyone but the operator has written.

        Raises:
            PromptError: the model has no template, or its template refuses or drops what it was given.
        """
        if self._template is None:
            raise PromptError("this model has no chat template: send `prompt` with `raw`: true to complete it as it is")
        mark = f"\ue000{secrets.token_hex(8)}."
        # White space stays around the placeholder, because many templates trim what they are given.
        contents = [content.strip() for _, content in messages]
        names = [
            content.replace(core, f"{mark}{i}\ue001", 1) if core else f"{content}{mark}{i}\ue001"
            for i, ((_, content), core) in enumerate(zip(messages, contents, strict=True))
        ]
        try:
            with _time_limit():
                rendered = self._template.render(
                    messages=[{"role": role, "content": name} for (role, _), name in zip(messages, names, strict=True)],
                    bos_token=self._vocabulary.text(self._vocabulary.bos),
                    eos_token=self._vocabulary.text(self._vocabulary.eos),
                    add_generation_prompt=True,
                    tools=None,  # that, and not that it is undefined, is what templates look for
                    documents=None,
                )
        except PromptError:
            raise
        except Exception as error:  # as above
            raise PromptError(f"the model's chat template refuses this conversation: {_why(error)}") from error
        parts = re.split(f"{re.escape(mark)}(\\d+)\ue001", rendered)
        dropped = [role for i, (role, _) in enumerate(messages) if str(i) not in parts[1::2]]
        if dropped:
            raise PromptError(f"the model's chat template has no place for a message with role `{dropped[0]}`")
        return self._tokens(parts, contents, own)

    def raw(self, prompt: str) -> list[int]:
        """Tokens of a prompt that is completed as it stands, the beginning-of-text token before it where due."""
        return self._begin(self._vocabulary.tokenize(prompt))

    def _tokens(self, parts: list[str], contents: list[str], own: int) -> tuple[list[int], int]:
        """`parts` alternates template text and the number of the message whose content stands there."""
        tokens: list[int] = []
        shared: int | None = None
        plain = ""  # what has come since the last control token
        strip = False
        for i, part in enumerate(parts):
            rest = contents[int(part)] if i % 2 else part
            if i % 2 and int(part) >= own and shared is None:
                shared = len(tokens)  # what is plain so far becomes tokens together with what follows
            while rest:
                match = None if i % 2 or self._control is None else self._control.search(rest)
                text, rest = (rest[: match.start()], rest[match.end() :]) if match else (rest, "")
                plain += text.lstrip(_SPACE) if strip else text
                strip = strip and not plain
                if match:
                    control = self._vocabulary.control_tokens[match.group()]
                    attributes = self._vocabulary.attributes(control)
                    tokens += [*self._plain(plain.rstrip(_SPACE) if attributes & _LSTRIP else plain), control]
                    plain, strip = "", bool(attributes & _RSTRIP)
        shared = len(tokens) if shared is None else shared
        tokens += self._plain(plain)
        whole = self._begin(tokens)
        return whole, shared + len(whole) - len(tokens)

    def _plain(self, text: str) -> list[int]:
        """Tokens of text in which nothing steers the model: what looks like a marker is tokenised in two halves."""
        tokens: list[int] = []
        start = 0
        while self._markers and (match := self._markers.search(text, start)):
            end = match.start() + 1
            tokens += self._vocabulary.tokenize(text[start:end])
            start = end
        return [*tokens, *self._vocabulary.tokenize(text[start:])] if start < len(text) else tokens

    def _begin(self, tokens: list[int]) -> list[int]:
        bos = self._vocabulary.bos
        return [bos, *tokens] if self._vocabulary.adds_bos and bos >= 0 and tokens[:1] != [bos] else tokens


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Finds any of the texts, the longest first; None where there are none."""
    longest = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest))) if longest else None


def _steers(added: str, source: str) -> bool:
    """Whether a token that was added to the vocabulary is a marker: stands in brackets, or in the template."""
    bracketed = len(added) > 1 and added[0] in "<[{|" and added[-1] in ">]}|"
    return bracketed or (bool(added.strip()) and added in source)


@contextmanager
def _time_limit() -> Iterator[None]:
    """Interrupt a template that loops: it holds up all requests. Of the main thread alone, as signals are.

    Again and again, for Python swallows what is raised in a finalizer or in a weak reference's callback, and the timer
    counts what all threads use.

    Raises:
        TimeoutError: the block has used `_MOST_CPU_S`.
    """
    within, began = True, time.thread_time()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if within and time.thread_time() - began >= _MOST_CPU_S:
            raise TimeoutError(f"it has not come to an end after {_MOST_CPU_S:g} s")

    before = signal.signal(signal.SIGVTALRM, on_signal)
    try:
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, _MOST_CPU_S, _LOOK_S)
            yield
        finally:
            within = False
    finally:  # which an interruption in the line above reaches as well, and the next one is far away
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _why(error: Exception) -> str:
    """What went wrong in a template, also where the error has no words."""
    return str(error) or type(error).__name__


def _raise_exception(message: str) -> NoReturn:
    raise PromptError(f"the model's chat template refuses this conversation: {message}")


def _strftime_now(form: str) -> str:
    return datetime.now(tz=UTC).astimezone().strftime(form)


def _tojson(value: Any, indent: int | None = None) -> str:
    """JSON without HTML's escapes, as the templates' authors have it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
