"""Model files that are not as they should be: the worker says why it cannot use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edged.engine.process import Lost
from edged.engine.protocol import Failed, Load
from tests.engine import gguf, vocabularies
from tests.engine.gguf import u32
from tests.engine.handles import Handle
from tests.engine.talk import Talk, counting


def failure(path: Path | str, **load: Any) -> str:
    """The sentence with which a model is refused: the same as the child's report, and as the reason of its end."""
    with Handle(Load(path=str(path), threads=1, digest="known", **load)) as handle:
        _, failed = handle.next(Failed)
        _, lost = handle.next(Lost)
        assert lost.reason.startswith(failed.message)
        return failed.message


def altered(starter: Path, path: Path, old: str, new: str) -> Path:
    """A copy of the starter model with a piece of its template replaced by one that is no longer."""
    raw = starter.read_bytes()
    assert raw.count(old.encode()) == 1
    path.write_bytes(raw.replace(old.encode(), new.ljust(len(old)).encode()))
    return path


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "failed to load model"),
        (b"GGUF", "failed to load model"),
        (b"This is no model.\n" * 100, "invalid magic|failed to load model"),
        (gguf.header([("general.architecture", "llama"), ("llama.context_length", u32(64))]), "failed to load model"),
        (gguf.header([("general.architecture", "of tomorrow")]), "unknown model architecture|failed to load model"),
    ],
    ids=["empty", "four bytes", "text", "header alone", "unknown architecture"],
)
def test_a_file_that_is_no_model_is_refused_with_llama_cpps_reason(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    message = failure(path)
    assert message.startswith("llama.cpp cannot load 'broken.gguf': ")
    assert any(part in message for part in why.split("|"))


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    assert failure(tmp_path / "gone.gguf").startswith("llama.cpp cannot load 'gone.gguf': ")


def test_a_vocabulary_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    vocabularies.write_sentencepiece(path, {})
    assert failure(path).startswith("llama.cpp cannot load 'empty.gguf': ")


@pytest.mark.model
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_truncated_model_is_refused(starter: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "half.gguf"
    with starter.open("rb") as file:
        path.write_bytes(file.read(int(starter.stat().st_size * share)))
    assert failure(path).startswith("llama.cpp cannot load 'half.gguf': ")


@pytest.mark.model
def test_more_sequences_than_llama_cpp_can_keep_apart_are_refused(starter: Path) -> None:
    message = failure(starter, context=256, parallel=1000)
    assert message.startswith(f"no context of 256 tokens for '{starter.name}': ")
    assert "a smaller `context` needs less memory" in message


@pytest.mark.model
def test_a_model_whose_template_is_no_jinja_is_refused(starter: Path, tmp_path: Path) -> None:
    path = altered(
        starter, tmp_path / "template.gguf", "{% for message in messages %}", "{% fox message in messages %}"
    )
    assert failure(path, context=256, parallel=1).startswith("the model's chat template is no valid Jinja: ")


@pytest.mark.model
def test_a_template_that_fails_costs_its_own_requests_alone(starter: Path, tmp_path: Path) -> None:
    old = "{% if loop.first and messages[0]['role'] != 'system' %}"
    new = "{% if messages[0]['role'] != 'system' %}{{ ''.a.b }}"
    path = altered(starter, tmp_path / "moody.gguf", old, new)
    with Handle(Load(path=str(path), context=256, parallel=2, threads=1, digest="known")) as handle:
        talk = Talk(handle)
        beside = talk.ask(counting(), max_tokens=12)
        end = talk.say(messages=[("user", "Hello")]).end
        assert (end.reason, end.error) == ("error", "bad_request")
        assert end.message.startswith("the model's chat template refuses this conversation: ")
        assert talk.say(messages=[("system", "Be brief."), ("user", "Hello")], max_tokens=2).end.error == ""
        assert talk.finish(beside)[0].end.completion_tokens == 12
        assert talk.child == 1


@pytest.fixture(scope="module")
def tekken(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talk]:
    """The starter model whose text is split into words as that of Mistral Nemo is, by a std::regex."""
    raw = starter.read_bytes()
    at = raw.index(b"smollm", raw.index(b"tokenizer.ggml.pre"))
    path = tmp_path_factory.mktemp("tekken") / "tekken.gguf"
    path.write_bytes(raw[:at] + b"tekken" + raw[at + 6 :])
    with Handle(Load(path=str(path), context=512, parallel=2, threads=1, digest="known")) as handle:
        yield Talk(handle)


@pytest.mark.model
@pytest.mark.parametrize("letters", [4_000, 27_000, 75_000])
@pytest.mark.parametrize("raw", [True, False])
def test_a_long_word_does_not_end_the_engine(tekken: Talk, letters: int, raw: bool) -> None:
    word = "a" * letters
    end = (tekken.say(word) if raw else tekken.say(messages=[("user", word)])).end
    assert (end.reason, end.error) == ("error", "context_overflow")
    assert end.message.startswith(f"the prompt has {end.prompt_tokens} tokens; the model's context holds 512, ")


@pytest.mark.model
@pytest.mark.parametrize("raw", [True, False])
def test_what_is_certainly_too_long_is_refused_before_it_is_read(tekken: Talk, raw: bool) -> None:
    text = "what a long text " * 8_000
    end = (tekken.say(text) if raw else tekken.say(messages=[("user", text)])).end
    assert (end.reason, end.error) == ("error", "context_overflow")
    assert end.message.startswith("the prompt has at least 8")
    assert 512 < end.prompt_tokens < 5 * 8_000


@pytest.mark.model
def test_white_space_around_a_message_is_not_certainly_part_of_its_prompt(tekken: Talk) -> None:
    """Many templates trim what they are given; the starter's does not."""
    end = tekken.say(messages=[("user", f"Hello{' ' * 200_000}")]).end
    assert end.message.startswith(f"the prompt has {end.prompt_tokens} tokens; ")
