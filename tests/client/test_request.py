"""Keywords: those of a request and those of a client, and what each refuses."""

from __future__ import annotations

import json

import pytest

from edged.client import AsyncClient, Client, ErrorCode, Fields, InvalidRequest, Message, Options, Settings
from edged.client.inbox import Inbox
from edged.client.request import _OWN, compose
from edged.wire.errors import RequestError
from edged.wire.request import Request, parse_request


def test_the_keywords_are_the_contracts_fields() -> None:
    assert set(Fields.__annotations__) == set(Request.model_fields) - set(_OWN)


def test_the_options_are_the_settings() -> None:
    assert set(Options.__annotations__) == set(Settings.__dataclass_fields__)


def test_only_what_was_given_is_sent() -> None:
    order = compose("Hi", {"max_tokens": 5})
    body = json.loads(order.payload)
    assert body == {"id": order.id, "prompt": "Hi", "max_tokens": 5}
    assert json.loads(compose([Message(role="user", content="ü")], {}).payload)["messages"] == [
        {"role": "user", "content": "ü"}
    ]
    assert compose("Hi", {"id": "mine", "timeout_s": 2}).id == "mine"
    assert compose("Hi", {"timeout_s": 2}).timeout_s == 2


def test_every_request_gets_an_id_of_its_own() -> None:
    assert len({compose("Hi", {}).id for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ""},
        {"prompt": "Hi", "seed": -1},
        {"prompt": "Hi", "id": "a b"},
        {"prompt": "Hi", "top_p": float("nan")},
        {"prompt": "Hi", "nonsense": 1},
        {"prompt": "Hi", "tools": []},
        {"prompt": "Hi", "stop": [""]},
        {"prompt": "Hi", "raw": True, "system": "x"},
        {"prompt": "Hi", "metadata": {"a": 1}},
    ],
)
def test_errors_are_those_of_the_daemon(body: dict[str, object]) -> None:
    with pytest.raises(RequestError) as theirs:
        parse_request(json.dumps(body).encode(), max_bytes=10**6)
    prompt = str(body.pop("prompt"))
    with pytest.raises(InvalidRequest) as ours:
        compose(prompt, body)
    assert str(ours.value) == theirs.value.message
    assert ours.value.field == theirs.value.field
    assert ours.value.code == theirs.value.code


def test_text_that_is_none_is_called_so() -> None:
    """As Python has bytes of the command line that are no UTF-8."""
    for body in ({"prompt": "caf\udce9"}, {"prompt": "Hi", "stop": ["caf\udce9"]}):
        prompt = str(body.pop("prompt"))
        with pytest.raises(InvalidRequest) as caught:
            compose(prompt, body)
        assert str(caught.value) == (
            "the request is no text: it has the lone surrogate U+DCE9, which stands for bytes that are no UTF-8"
        )


@pytest.mark.parametrize("prompt", [5, None, b"bytes", [5], [{"role": "user"}], [], "\ud800"])
def test_what_is_no_prompt_is_refused(prompt: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compose(prompt, {})
    assert caught.value.code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": ""}, "host ''"),
        ({"host": "a" * 64 + ".b"}, "is no host"),
        ({"port": 0}, "port 0"),
        ({"port": 70000}, "use 1 to 65535"),
        ({"node": "a/b"}, "node name 'a/b'"),
        ({"node": "pool"}, "'pool'"),
        ({"client": "a b"}, "client 'a b'"),
        ({"topic_root": "a//b"}, "empty level"),
        ({"topic_root": "a/+"}, "wildcard"),
        ({"version": 4}, "version 4"),
        ({"password": "x"}, "needs a username"),
        ({"keepalive": 0}, "keepalive 0"),
        ({"timeout": 0}, "timeout 0"),
        ({"accept_timeout": -1}, "accept_timeout -1"),
        ({"timeout": float("nan")}, "timeout nan"),
        ({"buffer_bytes": 0}, "buffer_bytes 0"),
    ],
)
def test_an_option_that_cannot_work_is_refused_at_once(options: Options, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("+", r"\+")):
        Client(**options)
    with pytest.raises(ValueError, match=words.replace("+", r"\+")):
        AsyncClient(**options)


def test_ports_follow_tls() -> None:
    assert Settings().tcp_port == 1883
    assert Settings(tls=True).tcp_port == 8883
    assert Settings(tls=True, port=1).tcp_port == 1


def test_a_password_is_not_printed() -> None:
    assert "hunter2" not in repr(Settings(username="ann", password="hunter2"))


def test_a_client_without_a_name_gets_one_of_its_own() -> None:
    assert Client().name != Client().name
    assert Client(client="ann").name == "ann"


def test_an_inbox_takes_one_message_of_any_length_and_then_no_more() -> None:
    inbox = Inbox(100, lambda: None)
    assert inbox.put(b"x" * 1000)
    assert not inbox.put(b"x")
    assert inbox.put(b"y")  # dropped: the reader is told already
    assert inbox.take() == b"x" * 1000
    assert "100 bytes" in str(inbox.take())
    assert inbox.take() is None
