"""The samplers of one request: a llama.cpp chain, in the order that keeps it cheap."""

from __future__ import annotations

from dataclasses import dataclass

import llama_cpp as llama

#: How many of the last tokens the penalties look at.
PENALTY_TOKENS = 64
#: Below this, logits divided by the temperature leave the range of llama.cpp's floats, and the draw is nonsense.
_LEAST_TEMPERATURE = 1e-6


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The parameters of the contract, all decided (docs/protocol.md, section 2)."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float


class Sampler:
    """Chooses the next token from the logits of a batch. Its state goes on when the sequence is computed again.

    Order: penalties (only when one is set: they look at every entry of the vocabulary), top_k (so that what follows
    works on few), top_p, min_p, temperature, then the draw. At temperature 0 the likeliest token is taken.
    """

    def __init__(self, params: SamplingParams, vocabulary_size: int) -> None:
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in self._samplers(params, vocabulary_size):
            llama.llama_sampler_chain_add(self._chain, sampler)
        self._penalises = _penalises(params)

    @staticmethod
    def _samplers(params: SamplingParams, vocabulary_size: int) -> list[int]:
        chosen = []
        if _penalises(params):
            chosen.append(
                llama.llama_sampler_init_penalties(
                    vocabulary_size,
                    PENALTY_TOKENS,
                    params.repeat_penalty,
                    params.frequency_penalty,
                    params.presence_penalty,
                )
            )
        if params.temperature < _LEAST_TEMPERATURE:
            return [*chosen, llama.llama_sampler_init_greedy()]
        if params.top_k > 0:
            chosen.append(llama.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1:
            chosen.append(llama.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0:
            chosen.append(llama.llama_sampler_init_min_p(params.min_p, 1))
        return [*chosen, llama.llama_sampler_init_temp(params.temperature), llama.llama_sampler_init_dist(params.seed)]

    def prime(self, prompt: list[int]) -> None:
        """Let the penalties see the end of the prompt."""
        if self._penalises:
            for token in prompt[-PENALTY_TOKENS:]:
                llama.llama_sampler_accept(self._chain, token)

    def sample(self, context: int, index: int) -> int:
        """The next token, from the logits at `index` of the last batch of a `llama_context`; -1 = its last logits."""
        return int(llama.llama_sampler_sample(self._chain, context, index))

    def close(self) -> None:
        """Give the chain back; a second time does nothing."""
        if self._chain:
            llama.llama_sampler_free(self._chain)
            self._chain = None


def _penalises(params: SamplingParams) -> bool:
    return (params.repeat_penalty, params.presence_penalty, params.frequency_penalty) != (1, 0, 0)
