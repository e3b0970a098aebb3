"""Where settings come from, which source wins, and what a mistake in one says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edged.config import ConfigError, Settings, Sources, check_files, load
from edged.config.environment import known


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text('[mqtt]\nhost = "from-file"\nport = 1884\nusername = "file"\n')
    return path


def _problems(config: Path | None = None, **explicit: dict[str, object]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        load(config, explicit=explicit)
    return refused.value.problems


def _one(text: str, tmp_path: Path) -> str:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    (problem,) = _problems(path)
    return problem


def test_without_any_source_everything_has_its_default() -> None:
    assert load() == Settings()


def test_the_command_line_beats_the_environment_beats_the_file_beats_the_default(
    monkeypatch: pytest.MonkeyPatch, toml: Path
) -> None:
    monkeypatch.setenv("EDGED_MQTT__HOST", "from-environment")
    monkeypatch.setenv("EDGED_MQTT__PORT", "1885")
    mqtt = load(toml, explicit={"mqtt": {"host": "from-command-line"}}).mqtt
    assert (mqtt.host, mqtt.port, mqtt.username, mqtt.keepalive_s) == ("from-command-line", 1885, "file", 30)


def test_none_on_the_command_line_means_not_given(toml: Path) -> None:
    assert load(toml, explicit={"mqtt": {"host": None}}).mqtt.host == "from-file"


def test_the_file_is_the_named_one_else_the_variables_else_the_one_in_etc(
    monkeypatch: pytest.MonkeyPatch, toml: Path, tmp_path: Path, etc: Path
) -> None:
    etc.write_text('[mqtt]\nhost = "from-etc"\n')
    assert load().mqtt.host == "from-etc"
    by_variable = tmp_path / "variable.toml"
    by_variable.write_text('[mqtt]\nhost = "from-variable"\n')
    monkeypatch.setenv("EDGED_CONFIG", str(by_variable))
    assert load().mqtt.host == "from-variable"
    assert load(toml).mqtt.host == "from-file"
    monkeypatch.setenv("EDGED_CONFIG", "")
    assert load().mqtt.host == "from-etc"


def test_a_named_file_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _problems(tmp_path / "no.toml") == (f"{tmp_path}/no.toml: there is no such file; --config names it",)
    monkeypatch.setenv("EDGED_CONFIG", str(tmp_path / "no.toml"))
    assert _problems() == (f"{tmp_path}/no.toml: there is no such file; $EDGED_CONFIG names it",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[mqtt\n", "is not valid TOML: .*line 1"),
        (b"\xff", "is not UTF-8: see byte 0"),
        (None, "cannot be read: Is a"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"x.toml {reason}"):
        load(path)


def test_models_and_lists_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [{"alias": "big", "path": "/b.gguf", "defaults": {"temperature": 0, "stop": ["\n"]}}, {}]
    monkeypatch.setenv("EDGED_MODELS", json.dumps(models))
    monkeypatch.setenv("EDGED_MQTT__REPLY_TOPICS", '["a/#"]')
    monkeypatch.setenv("EDGED_STREAM", '{"flush_ms": 10}')
    monkeypatch.setenv("EDGED_STREAM__FLUSH_TOKENS", "4")
    settings = load()
    assert [model.alias for model in settings.models] == ["big", "starter"]
    assert settings.models[0].defaults.stop == ("\n",)
    assert settings.mqtt.reply_topics == ("a/#",)
    assert (settings.stream.flush_ms, settings.stream.flush_tokens) == (10, 4)


def test_models_of_a_stronger_source_replace_the_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('[[models]]\nalias = "one"\n[[models]]\nalias = "two"\n[models.defaults]\ntemperature = 0\n')
    assert [m.alias for m in load(path).models] == ["one", "two"]
    assert [m.defaults.temperature for m in load(path).models] == [0.8, 0]
    monkeypatch.setenv("EDGED_MODELS", '[{"alias": "three"}]')
    assert [m.alias for m in load(path).models] == ["three"]


def test_every_key_can_be_set_from_the_environment_in_its_written_form(monkeypatch: pytest.MonkeyPatch) -> None:
    written = {
        "NODE__NAME": "n",
        "MQTT__VERSION": "5",
        "MQTT__TLS": "true",
        "MQTT__USERNAME": "u",
        "LIMITS__TIMEOUT_S": "1.5",
        "SERVICE__METRICS_S": "0",
        "LOG__LEVEL": "debug",
        "JOURNAL__PATH": "/j.db",
    }
    for name, value in written.items():
        monkeypatch.setenv(f"EDGED_{name}", value)
    settings = load()
    assert settings.node.name == "n"
    assert (settings.mqtt.version, settings.mqtt.port) == (5, 8883)
    assert (settings.limits.timeout_s, settings.service.metrics_s) == (1.5, 0)
    assert (settings.log.level, settings.journal.path) == ("debug", Path("/j.db"))


def test_every_wrong_value_is_named_with_its_source_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('[limits]\nmax_queue = 0\n[log]\nlevel = "loud"\n')
    monkeypatch.setenv("EDGED_MQTT__PORT", "99999")
    assert _problems(path, stream={"flush_ms": -1}) == (
        "[mqtt] port: '99999' is too large: at most 65535 (from environment EDGED_MQTT__PORT)",
        "[stream] flush_ms: -1 is too small: at least 0 (from the command line)",
        f"[limits] max_queue: 0 is too small: at least 1 (in {path})",
        f"[log] level: 'loud' is none of 'debug', 'info', 'warning' or 'error' (in {path})",
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[mqtt]\nhsot = 1", "[mqtt] hsot: unknown key; did you mean host?"),
        ("[mqqt]\nhost = 1", "mqqt: no section or key of this name; did you mean mqtt?"),
        ("port = 1", "port: no section or key of this name; there are node, mqtt, models, engine,"),
        ("_env_file = 'x'", "_env_file: no section or key of this name"),
        ("mqtt = 5", "[mqtt]: this is a section, not a value: write [name] on a line"),
        ("[models]\nalias = 'a'", "[[models]]: each model has a section of its own that starts with [[models]]"),
        ("[[models]]\n[[models]]\nalais = 'x'", "[[models]] #2 alais: unknown key; did you mean alias?"),
        ("[[models]]\n[models.defaults]\ntop_q = 1", "[[models]] #1 defaults.top_q: unknown key; did you mean top_"),
        ("[[models]]\n[models.defaults]\nstop = ['a', '']", "[[models]] #1 defaults.stop, entry 2: it is empty"),
        ("[[models]]\n[[models]]", "[[models]] alias: two models are called 'starter'"),
        ("[mqtt]\nport = 'x'", "[mqtt] port: 'x' is not an integer"),
        ("[mqtt]\nport = true", "[mqtt] port: true is not a number"),
        ("[mqtt]\nport = 1.5", "[mqtt] port: 1.5 is not an integer"),
        ("[mqtt]\ntls = 'perhaps'", "[mqtt] tls: 'perhaps' is not true or false"),
        ("[mqtt]\nhost = 5", "[mqtt] host: 5 is not text in quotes"),
        ("[mqtt]\nhost = ''", "[mqtt] host: it is empty"),
        ("[mqtt]\nca_file = 5", "[mqtt] ca_file: 5 is not a file's path in quotes"),
        ("[mqtt]\nreply_topics = 'a'", "[mqtt] reply_topics: 'a' is not a list"),
        ("[mqtt]\nreply_topics = ['a', 'b#']", "[mqtt] reply_topics, entry 2: 'b#': # stands alone"),
        ("[limits]\ntimeout_s = nan", "[limits] timeout_s: nan is not a finite number"),
        ("[engine]\nitl_target_ms = 'fast'", "[engine] itl_target_ms: 'fast' is not a number"),
        ("[mqtt]\ntls = true\ncert_file = '/x'", "[mqtt]: cert_file and key_file go together"),
        (
            "[[models]]\n[models.defaults]\ntop_p = 0",
            "[[models]] #1 defaults.top_p: 0 is too small: it must be above 0",
        ),
        ("[node]\nname = 'a b'", "[node] name: node name 'a b' is not allowed"),
        ("[mqtt]\nhost = '" + "x" * 300 + "'", "[mqtt] host: 'xxxx"),
        ("[mqtt]\ntopic_root = '" + "x" * 300 + "'", "[mqtt] topic_root: 'xxxx"),
        ("[[models]]\npath = ''", "[[models]] #1 path: it is empty"),
        ("models = []", "[[models]]: each model has a section of its own"),
        ("[mqtt]\nreply_topics = " + str(["a"] * 101), "[mqtt] reply_topics: ['a', 'a', "),
    ],
)
def test_a_mistake_in_the_file_is_a_sentence_with_its_key(tmp_path: Path, text: str, sentence: str) -> None:
    problem = _one(text, tmp_path)
    assert problem.startswith(sentence)
    assert len(problem) < 300


def test_a_password_in_the_wrong_place_is_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    problem = _one("[mqtt]\npassword = 'hunter2'", tmp_path)
    assert "hunter2" not in problem
    assert "password_file" in problem
    monkeypatch.setenv("EDGED_MQTT__PASSWORD", "hunter2")
    (problem,) = _problems()
    assert "hunter2" not in problem
    assert problem.endswith("(from environment EDGED_MQTT__PASSWORD)")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("EDGED_MQTT__HSOT", "x", "[mqtt] hsot: unknown key; did you mean host? (from environment EDGED_MQTT__HSOT)"),
        (
            "EDGED_MQQT__HOST",
            "x",
            "environment EDGED_MQQT__HOST: there is no section [mqqt]; did you mean EDGED_MQTT__",
        ),
        ("EDGED_MODELS", "starter", "environment EDGED_MODELS: its value has to be a JSON list like [{"),
        ("EDGED_MODELS", "{}", "environment EDGED_MODELS: its value has to be a JSON list like [{"),
        ("EDGED_MODELS__0__ALIAS", "x", "environment EDGED_MODELS__0__ALIAS: the models come all together"),
        ("EDGED_MQTT", "broker", "environment EDGED_MQTT: the form is EDGED_SECTION__KEY, or the section as a JSON"),
        ("EDGED_MQTT__TLS__CA_FILE", "x", "environment EDGED_MQTT__TLS__CA_FILE: the form is EDGED_SECTION__KEY"),
        ("EDGED_MQTT__REPLY_TOPICS", "a,b", "environment EDGED_MQTT__REPLY_TOPICS: its value has to be a JSON list"),
        ("EDGED_MQTT__PORT", "", "[mqtt] port: '' is not an integer (from environment EDGED_MQTT__PORT)"),
        (
            "EDGED_MODELS",
            '[{"parallel": 0}]',
            "[[models]] #1 parallel: 0 is too small: at least 1 (from environment EDG",
        ),
        ("EDGED_MODELS", "[" * 100_000, "environment EDGED_MODELS: its value has to be a JSON list like [{"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    (problem,) = _problems()
    assert problem.startswith(sentence)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("EDGED_MQTT_HOST", "; did you mean EDGED_MQTT__HOST?"),
        ("EDGED_PORT", ""),
        ("EDGED_SERVICE_HOST", ""),
    ],
)
def test_a_variable_that_is_no_setting_is_warned_about_and_does_not_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, hint: str
) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:1883")
    assert load() == Settings()
    expected = f"warning: environment {name} is no setting and has no effect"
    assert capsys.readouterr().err.startswith(expected + hint)


def test_variables_that_are_no_settings_by_design_are_not_warned_about(
    monkeypatch: pytest.MonkeyPatch, toml: Path
) -> None:
    monkeypatch.setenv("EDGED_CONFIG", str(toml))
    monkeypatch.setenv("EDGED_TEST_BROKER", "local")
    heard: list[str] = []
    load(warn=heard.append)
    assert heard == []


def test_known_variables_are_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in known():
        monkeypatch.setenv(name, "[]" if name in {"EDGED_MODELS", "EDGED_MQTT__REPLY_TOPICS"} else "1")
    assert {f"EDGED_{'__'.join(place)}".upper() for place in Sources.gather().variables} == set(known())


def test_a_consumer_is_not_stopped_by_a_broken_file_in_etc(etc: Path) -> None:
    for content in ("[mqtt", "[mqtt]\nport = 0\n"):
        etc.write_text(content)
        with pytest.raises(ConfigError):
            load()
        heard: list[str] = []
        assert load(forgiving=True, warn=heard.append) == Settings()
        assert len(heard) == 1
        assert "passed over" in heard[0]
        assert str(etc) in heard[0]


def test_a_consumer_is_not_stopped_by_an_unreadable_file_in_etc(etc: Path) -> None:
    etc.mkdir()  # unreadable for root as well, which the tests may run as
    heard: list[str] = []
    assert load(forgiving=True, warn=heard.append) == Settings()
    assert heard == [f"passed over: {etc} cannot be read: Is a directory"]


def test_a_consumer_goes_without_the_credentials_that_only_the_daemon_can_read(
    monkeypatch: pytest.MonkeyPatch, etc: Path, tmp_path: Path
) -> None:
    readable, not_readable = tmp_path / "readable", tmp_path / "missing"
    readable.touch(mode=0o600)
    etc.write_text(
        f'[mqtt]\nhost = "broker.lan"\nusername = "edged"\npassword_file = "{not_readable}"\n'
        f'tls = true\ncert_file = "{readable}"\nkey_file = "{not_readable}"\n'
    )
    heard: list[str] = []
    mqtt = load(forgiving=True, warn=heard.append).mqtt
    assert (mqtt.host, mqtt.tls) == ("broker.lan", True)
    assert (mqtt.username, mqtt.password_file, mqtt.cert_file, mqtt.key_file) == (None, None, None, None)
    assert heard == [
        f"username in {etc} passed over: its password_file '{not_readable}' cannot be read",
        f"cert_file in {etc} passed over: its key_file '{not_readable}' cannot be read",
    ]
    assert load().mqtt.username == "edged", "the daemon does not go without"
    own = {"mqtt": {"username": "ann", "password_file": readable}}
    assert load(explicit=own, forgiving=True, warn=heard.append).mqtt.password_file == readable
    monkeypatch.setenv("EDGED_CONFIG", str(etc))
    assert load(forgiving=True).mqtt.username == "edged", "nor does a consumer who names the file"


def test_a_consumers_own_mistakes_stay_errors_beside_a_broken_file_in_etc(
    monkeypatch: pytest.MonkeyPatch, etc: Path, tmp_path: Path
) -> None:
    etc.write_text("[mqtt]\nport = 0\n")
    with pytest.raises(ConfigError) as refused:
        load(explicit={"limits": {"timeout_s": 0}}, forgiving=True)
    assert refused.value.problems == ("[limits] timeout_s: 0 is too small: at least 0.1 (from the command line)",)
    named = tmp_path / "named.toml"
    named.write_text("[mqtt]\nport = 0\n")
    with pytest.raises(ConfigError):
        load(named, forgiving=True)
    monkeypatch.setenv("EDGED_CONFIG", str(named))
    with pytest.raises(ConfigError):
        load(forgiving=True)


def test_files_that_the_settings_name_are_proved_to_be_readable(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    mqtt = {"tls": True, "ca_file": tmp_path / "ca", "cert_file": tmp_path / "cert", "key_file": tmp_path / "key"}
    check_files(Settings.model_validate({"mqtt": mqtt}))
    (tmp_path / "key").unlink()
    mqtt |= {"username": "me", "password_file": tmp_path / "password"}
    with pytest.raises(ConfigError) as refused:
        check_files(Settings.model_validate({"mqtt": mqtt}))
    assert refused.value.problems == (
        f"[mqtt] password_file: '{tmp_path}/password' cannot be read: No such file or directory",
        f"[mqtt] key_file: '{tmp_path}/key' cannot be read: No such file or directory",
    )


def test_loading_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch, toml: Path) -> None:
    monkeypatch.setenv("EDGED_MQTT__PORT", "1885")
    before = dict(os.environ)
    load(toml)
    assert dict(os.environ) == before
