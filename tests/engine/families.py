"""Chat templates in the manner of the well-known model families, with the special tokens of their vocabularies."""

from __future__ import annotations

from dataclasses import dataclass, field

from jinja2.ext import loopcontrols
from jinja2.sandbox import SandboxedEnvironment

from tests.engine.vocabularies import CONTROL, RSTRIP, USER_DEFINED, Characters


@dataclass(frozen=True, slots=True)
class Family:
    """A template, and what belongs to it.

    Attributes:
        roles: those that it has a place for, in an order that it accepts any number of times from the second on.
        refuses: what it raises for another order of roles.
    """

    name: str
    source: str
    special: dict[str, int]
    bos: str = ""
    eos: str = ""
    adds_bos: bool = False
    has_system: bool = True
    others: tuple[str, ...] = field(default=("user", "assistant"))

    def vocabulary(self) -> Characters:
        return Characters(self.special, bos=self.bos, eos=self.eos, adds_bos=self.adds_bos)

    def rendered(self, messages: list[tuple[str, str]]) -> str:
        """The template's text with the contents in it, as libraries render it that do not tell them apart."""

        def refuse(message: str) -> None:
            raise ValueError(message)

        environment = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = refuse
        return environment.from_string(self.source).render(
            messages=[{"role": role, "content": content} for role, content in messages],
            bos_token=self.bos,
            eos_token=self.eos,
            add_generation_prompt=True,
            tools=None,
            documents=None,
        )


LLAMA3 = Family(
    name="llama3",
    source="""\
{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}
    {{- m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if tools is not none %}{{ raise_exception('no tools were given') }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    special=dict.fromkeys(
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"], CONTROL
    ),
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
    adds_bos=True,
)

GEMMA = Family(
    name="gemma",
    source="""\
{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('there is no system role') }}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must take turns') }}{% endif %}
<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor -%}
{% if add_generation_prompt %}<start_of_turn>model
{% endif %}
""",
    special={
        "<bos>": CONTROL,
        "<eos>": CONTROL,
        "<start_of_turn>": USER_DEFINED,
        "<end_of_turn>": CONTROL,
        # White space that has tokens of its own, which no template writes on purpose.
        "\n\n": USER_DEFINED,
        "  ": USER_DEFINED,
    },
    bos="<bos>",
    eos="<eos>",
    adds_bos=True,
    has_system=False,
)

MISTRAL = Family(
    name="mistral",
    source="""\
{%- if messages[0]['role'] == 'system' %}
    {%- set first = messages[0]['content'] + '\\n\\n' %}{%- set turns = messages[1:] %}
{%- else %}
    {%- set first = '' %}{%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for m in turns %}
    {%- if m.role == 'user' %}
        {{- '[INST] ' + (first if loop.first else '') + m['content'] + ' [/INST]' }}
    {%- elif m.role == 'assistant' %}
        {{- ' ' + m['content'].strip() + eos_token }}
    {%- else %}
        {{- raise_exception('only user and assistant roles: ' + m.role) }}
    {%- endif %}
{%- endfor %}""",
    special={"<s>": CONTROL, "</s>": CONTROL},  # [INST] is text
    bos="<s>",
    eos="</s>",
    adds_bos=True,
)

PHI = Family(
    name="phi",
    source="""\
{% for m in messages %}{% if m['content'] %}\
{{'<|' + m['role'] + '|>' + '\n' + m['content'] + '<|end|>' + '\n' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}""",
    special={
        "<s>": CONTROL,
        "<|system|>": CONTROL | RSTRIP,
        "<|user|>": CONTROL | RSTRIP,
        "<|assistant|>": CONTROL | RSTRIP,
        "<|end|>": CONTROL | RSTRIP,
        "<|endoftext|>": CONTROL,
    },
    bos="<s>",
    eos="<|endoftext|>",
    adds_bos=True,
)

QWEN = Family(
    name="qwen",
    source="""\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.index0 > ns.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
    {{- m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}""",
    special={
        "<|endoftext|>": CONTROL,
        "<|im_start|>": CONTROL,
        "<|im_end|>": CONTROL,
        "<think>": USER_DEFINED,
        "</think>": USER_DEFINED,
        "<tool_response>": USER_DEFINED,
        "</tool_response>": USER_DEFINED,
        "bonjour": USER_DEFINED,  # a word like any other
    },
    bos="<|endoftext|>",  # has one, and does not put it anywhere
    eos="<|im_end|>",
    others=("user", "assistant", "tool"),
)

FAMILIES = (LLAMA3, GEMMA, MISTRAL, PHI, QWEN)
