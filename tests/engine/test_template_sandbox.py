"""A chat template is a program by strangers: whatever it tries, the worst is a `PromptError`."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from edged.engine import template
from edged.engine.template import ChatTemplate, PromptError
from tests.engine.vocabularies import Characters

HELLO = [("user", "Hello")]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python swallows of the interruptions goes nowhere: where pytest told of it, the next one came into that."""
    monkeypatch.setattr(template, "_MOST_CPU_S", 0.05)
    monkeypatch.setattr(sys, "unraisablehook", id)


@pytest.mark.parametrize(
    "attempt",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.__init__.__globals__['os'].system('true') }}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__['json'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ namespace.__init__.__globals__.os }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ ('{0.__class__.__mro__}' | attr('format'))(1) }}",
        "{{ (messages | map(attribute='__class__') | first).__mro__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[9].content }}",
        "{{ strftime_now(7) }}",
        "{{ {'a': messages} | tojson(indent='x'.y) }}{{ namespace() | tojson }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 'x' * 10 ** 17 }}",
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ m.content }}{{ m.content.missing() }}{% endfor %}",
    ],
)
def test_what_a_template_may_not_or_cannot_do_refuses_the_conversation(attempt: str) -> None:
    with pytest.raises(PromptError, match=r"^the model's chat template refuses this conversation: ."):
        ChatTemplate(attempt + "{{ messages[0].content }}", Characters({})).prompt(HELLO)[0]


@pytest.mark.parametrize(
    "attempt", ["{{ ''.__class__ }}", "{{ messages.__class__ }}", "{{ raise_exception.__code__ }}"]
)
def test_the_inside_of_an_object_prints_as_nothing(attempt: str) -> None:
    vocabulary = Characters({})
    assert vocabulary.said(ChatTemplate(attempt + "{{ messages[0].content }}", vocabulary).prompt(HELLO)[0]) == "Hello"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}",
        "{{ messages[ }}",
        "{% unknown %}",
        "{{ 'x' | no_such_filter }}",
        "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
        "{% for a in b %}" * 40 + "{% endfor %}" * 40,
        "{% if x %}" * 200 + "{% endif %}" * 200,
    ],
    ids=lambda source: source[:24],
)
def test_a_template_that_cannot_be_compiled_is_refused_when_the_model_is_loaded(source: str) -> None:
    with pytest.raises(PromptError, match=r"^the model's chat template is no valid Jinja: ."):
        ChatTemplate(source, Characters({}))


@pytest.mark.parametrize(
    "loop",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_template_that_does_not_come_to_an_end_is_ended(loop: str) -> None:
    endless = ChatTemplate(loop + "{{ messages[0].content }}", Characters({}))
    for _ in range(2):
        with pytest.raises(PromptError, match=r"it has not come to an end after 0\.05 s"):
            endless.prompt(HELLO)[0]


@pytest.mark.usefixtures("impatient")
def test_an_interruption_that_python_swallows_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised in a finalizer or in a weak reference's callback goes nowhere."""
    swallowed: list[str] = []

    class Finalized:
        def __del__(self) -> None:
            try:
                while True:
                    pass
            except TimeoutError:
                swallowed.append("once")
                raise

    def finalizes(_form: str) -> str:
        Finalized()
        return ""

    monkeypatch.setattr(template, "_strftime_now", finalizes)
    endless = ChatTemplate(
        "{{ strftime_now('') }}{% for a in range(9999) %}{{ range(9999) | list }}{% endfor %}", Characters({})
    )
    with pytest.raises(PromptError, match=r"it has not come to an end after 0\.05 s"):
        endless.prompt(HELLO)[0]
    assert swallowed == ["once"]


@pytest.mark.usefixtures("impatient")
def test_a_template_is_not_charged_for_what_other_threads_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer counts that, too; here it was most of it."""
    looks: list[float] = []

    def own() -> float:
        looks.append(0.02 * len(looks))
        return looks[-1]

    monkeypatch.setattr(time, "thread_time", own)
    monkeypatch.setattr(template, "_LOOK_S", 0.01)
    endless = ChatTemplate("{% for a in range(9999) %}{{ range(9999) | list }}{% endfor %}", Characters({}))
    looks.clear()
    with pytest.raises(PromptError, match="it has not come to an end"):
        endless.prompt(HELLO)[0]
    assert looks == pytest.approx([0.0, 0.02, 0.04, 0.06])


@pytest.mark.usefixtures("impatient")
def test_after_a_template_no_timer_is_left() -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    well = ChatTemplate("{{ messages[0].content }}", Characters({}))
    well.prompt(HELLO)[0]
    with pytest.raises(PromptError):
        ChatTemplate("{{ messages.x.y }}", Characters({})).prompt(HELLO)[0]
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) == before


def test_one_template_that_fails_does_not_harm_the_next_conversation() -> None:
    vocabulary = Characters({})
    moody = ChatTemplate("{% if messages | length > 1 %}{{ 1 / 0 }}{% endif %}{{ messages[0].content }}", vocabulary)
    with pytest.raises(PromptError):
        moody.prompt([*HELLO, *HELLO])[0]
    assert vocabulary.said(moody.prompt(HELLO)[0]) == "Hello"
