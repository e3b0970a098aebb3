"""`edged ask`: what of the options and the configuration reaches the client. What it does then is the client's."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from edged import cli
from tests.brokers import Broker


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the client was asked; it exits with the code 75."""
    calls: list[dict[str, Any]] = []

    def ask(prompt: str | None, **keywords: Any) -> int:
        calls.append({"prompt": prompt, **keywords})
        return 75

    monkeypatch.setattr("edged.client.ask.ask", ask)
    return calls


def _ask(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["ask", *arguments])


def test_without_options_the_only_node_of_the_local_broker_is_asked(asked: list[dict[str, Any]]) -> None:
    done = _ask("Why?")
    assert (done.exit_code, done.stderr) == (75, "")
    assert asked == [
        {
            "prompt": "Why?",
            "connection": {
                "host": "localhost",
                "port": 1883,
                "node": None,
                "client": None,
                "username": None,
                "password": None,
                "tls": False,
                "topic_root": "edged/v1",
                "version": 5,
                "keepalive": 30,
            },
            "fields": {},
            "stream": True,
            "as_json": False,
        }
    ]


def test_options_become_fields_of_the_request(asked: list[dict[str, Any]]) -> None:
    options = "--model big --system Short. --max-tokens 5 --temperature 0 --seed 0 --timeout 1.5 --no-stream --json"
    _ask(*options.split(), "-")
    (call,) = asked
    assert call["prompt"] == "-"
    assert call["fields"] == {
        "model": "big",
        "system": "Short.",
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 0,
        "timeout_s": 1.5,
    }
    assert (call["stream"], call["as_json"]) == (False, True)


def test_without_a_prompt_the_client_reads_it_from_its_input(asked: list[dict[str, Any]]) -> None:
    _ask()
    assert asked[0]["prompt"] is None


def test_the_broker_and_node_are_the_configured_ones_unless_options_say_otherwise(
    asked: list[dict[str, Any]], etc: Path
) -> None:
    etc.write_text(
        '[node]\nname = "pi"\n[mqtt]\nhost = "broker.lan"\nport = 1884\nversion = "3.1.1"\ntopic_root = "home/llm"\n'
        "keepalive_s = 60\n"
    )
    _ask("x")
    _ask("x", "--host", "other", "--port", "1885", "--node", "attic")
    first, second = (call["connection"] for call in asked)
    assert first["host"] == "broker.lan"
    assert (first["port"], first["node"], first["version"]) == (1884, "pi", "3.1.1")
    assert (first["topic_root"], first["keepalive"]) == ("home/llm", 60)
    assert (second["host"], second["port"], second["node"]) == ("other", 1885, "attic")


def test_a_user_asks_under_the_own_name_with_the_own_password(
    asked: list[dict[str, Any]], etc: Path, tmp_path: Path
) -> None:
    daemons, own = tmp_path / "daemons", tmp_path / "own"
    for path, password in ((daemons, "daemon's"), (own, "mine")):
        path.write_text(f"{password}\n")
        path.chmod(0o600)
    etc.write_text(f'[mqtt]\nusername = "edged"\npassword_file = "{daemons}"\n')
    _ask("x")
    _ask("x", "--username", "ann", "--password-file", str(own))
    _ask("x", "--username", "ann")
    _ask("x", "--username", "ann@home")
    _ask("x", "--username", "ann", "--client", "kitchen")
    _ask("x", "--username", "")
    assert [(c["connection"]["username"], c["connection"]["password"], c["connection"]["client"]) for c in asked] == [
        ("edged", "daemon's", "edged"),
        ("ann", "mine", "ann"),
        ("ann", None, "ann"),
        ("ann@home", None, None),
        ("ann", None, "kitchen"),
        (None, None, None),
    ]


def test_tls_verifies_and_moves_the_port(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /dev/null -subj /CN=ca -out"
    subprocess.run([*make.split(), str(ca)], check=True, capture_output=True, timeout=60)
    _ask("x", "--tls")
    _ask("x", "--ca-file", str(ca))
    system, own = (call["connection"] for call in asked)
    assert (system["port"], own["port"]) == (8883, 8883)
    for connection in (system, own):
        assert connection["tls"].verify_mode is ssl.CERT_REQUIRED
        assert connection["tls"].check_hostname
    assert own["tls"].cert_store_stats()["x509_ca"] == 1


def test_no_tls_wins_over_the_configuration(asked: list[dict[str, Any]], etc: Path) -> None:
    etc.write_text("[mqtt]\ntls = true\n")
    _ask("x")
    _ask("x", "--no-tls")
    assert [bool(call["connection"]["tls"]) for call in asked] == [True, False]
    assert [call["connection"]["port"] for call in asked] == [8883, 1883]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--port", "0"], "[mqtt] port: 0 is too small: at least 1 (from the command line)"),
        (["--host", "mqtt://x"], "[mqtt] host: 'mqtt://x' is not a host name or address alone"),
        (["--node", "a/b"], "[node] name: node name 'a/b' is not allowed"),
        (["--client", "a/b"], "--client: 'a/b' cannot be a topic level"),
        (["--username", "me", "--password-file", "/nowhere/x"], "[mqtt] password_file: '/nowhere/x' cannot be read"),
        (["--ca-file", "/nowhere/x"], "the authorities in '/nowhere/x' cannot be used: No such file or directory"),
        (["--config", "/nowhere/x"], "/nowhere/x: there is no such file"),
    ],
)
def test_an_option_that_cannot_be_used_is_a_sentence(
    asked: list[dict[str, Any]], options: list[str], sentence: str
) -> None:
    done = _ask("x", *options)
    assert done.exit_code == 78
    assert done.stderr.startswith(f"edged: {sentence}")
    assert asked == []


@pytest.mark.parametrize("content", ["[mqtt", "[limits]\nmax_queue = 0\n", None])
def test_a_consumer_is_served_though_the_file_in_etc_is_not_usable(
    asked: list[dict[str, Any]], etc: Path, content: str | None
) -> None:
    etc.mkdir() if content is None else etc.write_text(content)
    done = _ask("x")
    assert done.exit_code == 75
    assert done.stderr.startswith("warning: ")
    assert "passed over" in done.stderr
    assert len(asked) == 1


def test_there_is_no_option_for_a_password() -> None:
    """Arguments can be read by every user of the machine."""
    assert "--password " not in _ask("--help").stdout
    assert _ask("x", "--password", "hunter2").exit_code == 2


def test_a_broker_or_node_that_is_not_there_exits_with_69(broker: Broker, tmp_path: Path) -> None:
    empty = tmp_path / "empty.toml"
    empty.touch()
    root = f"test/{tmp_path.name}"
    for options, sentence in (
        ("--port 1", "edged: not connected to the MQTT broker at 127.0.0.1:1: "),
        (f"--host {broker.host} --port {broker.port} --node nobody", "edged: node 'nobody' is not available: "),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "edged", "ask", "--host", "127.0.0.1", *options.split(), "Why?"],
            env=os.environ | {"EDGED_CONFIG": str(empty), "EDGED_MQTT__TOPIC_ROOT": root},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (69, "")
        assert done.stderr.startswith(sentence)
