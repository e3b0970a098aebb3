"""From an order to a sequence: its prompt becomes tokens, and what cannot be generated is refused with a reason."""

from __future__ import annotations

import time
import zlib

from edged.engine.model import Model
from edged.engine.protocol import Generate
from edged.engine.sampling import Sampler, SamplingParams
from edged.engine.sequence import Sequence, Timing
from edged.engine.template import ChatTemplate, PromptError
from edged.engine.text import TextStream

#: So many seeds are seeds: the next one has llama.cpp draw one itself.
_SEEDS = 2**32 - 1


class OrderError(Exception):
    """An order that cannot be followed.

    Args:
        error: the contract's code.
        message: for the consumer.
        prompt_tokens: how many the prompt has, where that is known.
    """

    def __init__(self, error: str, message: str, prompt_tokens: int = 0) -> None:
        super().__init__(message)
        self.error, self.message, self.prompt_tokens = error, message, prompt_tokens


class Reader:
    """Makes sequences of orders.

    Args:
        model: whose vocabulary, template and context they are for.

    Raises:
        PromptError: the model's template is no valid Jinja.
    """

    def __init__(self, model: Model) -> None:
        self._vocabulary = model.vocabulary
        self._template = ChatTemplate(model.chat_template, model.vocabulary)
        self._cells = model.context.cells
        self._longest = model.vocabulary.longest

    def read(self, order: Generate) -> Sequence:
        """The sequence that an order asks for.

        Raises:
            OrderError: there is none.
        """
        tokens, shared = self._prompt(order)
        if not tokens:
            raise OrderError("bad_request", "the prompt has no tokens: send some text")
        if len(tokens) >= self._cells:
            raise self._overflow(str(len(tokens)), len(tokens))
        text = TextStream(tuple(order.stop))
        if not self._goes_on(order, text):
            message = (
                "the model's file was replaced by that of another model while this answer was being written, and the "
                "new one cannot go on with it: send the request again"
            )
            raise OrderError("unavailable", message, len(tokens))
        return Sequence(
            uid=order.uid,
            tokens=[*tokens, *order.generated],
            prompt_tokens=len(tokens),
            max_tokens=order.max_tokens,
            sampler=self._sampler(order, tokens),
            text=text,
            wants_progress=order.progress,
            owner=order.owner or "",  # no client's name is empty
            shared=shared,
            exact=order.exact,
            timing=Timing(came=time.monotonic()),
        )

    def _prompt(self, order: Generate) -> tuple[list[int], int]:
        """Tokens of the prompt, and how far they are the operator's words."""
        texts = [order.prompt or ""] if order.messages is None else [content.strip() for _, content in order.messages]
        least = sum(len(text.encode()) for text in texts) // self._longest
        if least >= self._cells:  # to know it better would take a while, in which nothing else is computed
            raise self._overflow(f"at least {least}", least)
        try:
            if order.messages is None:
                return self._template.raw(order.prompt or ""), 0
            return self._template.prompt([(role, content) for role, content in order.messages], order.shared)
        except PromptError as error:
            raise OrderError("bad_request", str(error)) from error
        except RuntimeError as error:
            raise OrderError(
                "internal", f"no thread could be started to read the prompt ({error}): try again"
            ) from error

    def _overflow(self, size: str, prompt_tokens: int) -> OrderError:
        message = (
            f"the prompt has {size} tokens; the model's context holds {self._cells}, "
            "and at least one has to be left for the answer"
        )
        return OrderError("context_overflow", message, prompt_tokens)

    def _goes_on(self, order: Generate, text: TextStream) -> bool:
        """Read what was generated before; whether its tokens are the same text with this model's vocabulary."""
        vocabulary, crc32 = self._vocabulary, 0
        for token in order.generated:
            if not 0 <= token < vocabulary.size:
                return False
            crc32 = zlib.crc32(text.push(vocabulary.piece(token)).encode(), crc32)
        return order.crc32 is None or order.crc32 == crc32

    def _sampler(self, order: Generate, prompt: list[int]) -> Sampler:
        params = SamplingParams(
            temperature=order.temperature,
            top_p=order.top_p,
            top_k=order.top_k,
            min_p=order.min_p,
            # Going on with the draws from the beginning would favour what was drawn there.
            seed=(order.seed + len(order.generated)) % _SEEDS,
            repeat_penalty=order.repeat_penalty,
            presence_penalty=order.presence_penalty,
            frequency_penalty=order.frequency_penalty,
        )
        sampler = Sampler(params, self._vocabulary.size)
        sampler.prime([*prompt, *order.generated])
        return sampler
