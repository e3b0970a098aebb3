"""Both sides get the same work, and it is the work that it is said to be."""

from __future__ import annotations

from pathlib import Path

from benchmarks.load import Load, Setup, numbers
from edged.config import Settings
from edged.config.settings import Model


def test_a_load_is_the_same_for_whoever_makes_it() -> None:
    assert Load(2, 8, 5).prompt(1, 3) == Load(2, 8, 5).prompt(1, 3)
    assert Load(2, 8, 5).sampler_seed(1, 3) == Load(2, 8, 5).sampler_seed(1, 3)


def test_prompts_are_of_one_length_and_begin_differently() -> None:
    prompts = [Load(8, 8, seed).prompt(stream, turn) for seed in range(3) for stream in range(8) for turn in range(3)]
    assert len({len(prompt) for prompt in prompts}) == 1
    assert len({prompt[:16] for prompt in prompts}) == len(prompts)


def test_a_prompt_has_as_many_numbers_as_its_tokens_want() -> None:
    assert Load(1, 8, 5, numbers=numbers(600)).prompt(0).count(",") == 100
    assert numbers(1) == 1


def test_no_two_samplers_share_a_seed() -> None:
    seeds = [
        Load(8, 8, seed).sampler_seed(stream, turn) for seed in (1, 2) for stream in range(8) for turn in range(50)
    ]
    assert len(set(seeds)) == len(seeds)


def test_the_bare_loop_gets_the_daemons_settings(tmp_path: Path) -> None:
    file = tmp_path / "some.gguf"
    file.touch()
    model = Model.model_validate(
        {"path": str(file), "context": 512, "parallel": 3, "threads": 1, "defaults": {"temperature": 0.1, "top_k": 7}}
    )
    setup = Setup.of(Settings(models=(model,)))
    assert tuple(setup.load[name] for name in ("path", "context", "parallel", "threads")) == (str(file), 512, 3, 1)
    assert (setup.sampling["temperature"], setup.sampling["top_k"], setup.sampling["top_p"]) == (0.1, 7, 0.95)
