"""What the settings are, and which values they refuse."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edged.config import ConfigError, Settings
from edged.config.settings import Defaults, Model, Mqtt, default_node_name
from edged.wire.request import SamplingFields
from edged.wire.topics import MAX_REPLY_TOPIC_BYTES, Kind, RequestPath, Topics, matches


def test_every_setting_has_the_documented_default() -> None:
    values = Settings().model_dump()
    assert values.pop("node") == {"name": default_node_name()}
    assert values == {
        "mqtt": {
            "host": "localhost",
            "port": 1883,
            "version": 5,
            "username": None,
            "password_file": None,
            "topic_root": "edged/v1",
            "reply_topics": ("reply/#", "{root}/{node}/reply/#"),
            "keepalive_s": 30,
            "session_expiry_s": 86_400,
            "tls": False,
            "ca_file": None,
            "cert_file": None,
            "key_file": None,
        },
        "models": (
            {
                "alias": "starter",
                "path": "starter",
                "context": 4096,
                "parallel": 8,
                "threads": 0,
                "gpu_layers": 0,
                "ubatch": 64,
                "flash_attention": "auto",
                "kv_type": "f16",
                "prefix_cache": True,
                "defaults": {
                    "max_tokens": 512,
                    "temperature": 0.8,
                    "top_p": 0.95,
                    "top_k": 40,
                    "min_p": 0.05,
                    "repeat_penalty": 1.0,
                    "presence_penalty": 0.0,
                    "frequency_penalty": 0.0,
                    "stop": (),
                    "system": None,
                },
            },
        ),
        "engine": {"itl_target_ms": 50, "yield_threads": True},
        "stream": {"flush_ms": 40, "flush_tokens": 32, "max_waiting": 8, "max_pause_s": 300},
        "limits": {
            "max_queue": 256,
            "max_queue_per_client": 128,
            "max_payload": 262144,
            "max_tokens": 4096,
            "timeout_s": 600,
        },
        "journal": {"enabled": True, "path": None, "keep_s": 600, "max_size": 64 * 2**20},
        "service": {"grace_s": 20, "metrics_s": 60},
        "log": {"level": "info", "format": "auto"},
    }


def test_building_settings_reads_nothing_but_its_arguments(monkeypatch: pytest.MonkeyPatch, etc: Path) -> None:
    monkeypatch.setenv("EDGED_MQTT__HOST", "elsewhere")
    etc.write_text('[mqtt]\nhost = "elsewhere"\n')
    assert Settings().mqtt.host == "localhost"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("pi-kitchen", "pi-kitchen"),
        ("pi.kitchen.lan", "pi-kitchen-lan"),
        ("küche 1", "k-che-1"),
        ("x" * 100, "x" * 64),
        ("", "edged"),
        ("pool", "pool-node"),
    ],
)
def test_the_node_is_called_after_its_host_in_the_topics_alphabet(
    monkeypatch: pytest.MonkeyPatch, host: str, name: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert Settings().node.name == name
    assert Topics(node=name).node == name


@pytest.mark.parametrize("name", ["", "a/b", "pool", "a.b", "x" * 65, "a+"])
def test_a_node_name_that_is_no_topic_level_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="node name"):
        Settings.model_validate({"node": {"name": name}})


@pytest.mark.parametrize("version", [5, "5"])
def test_mqtt_5_is_written_as_number_or_text(version: object) -> None:
    assert Mqtt.model_validate({"version": version}).version == 5


def test_mqtt_3_1_1_is_spoken_and_others_are_not() -> None:
    assert Mqtt(version="3.1.1").version == "3.1.1"
    for other in (4, 3, "3.1", 3.11, "", None):
        with pytest.raises(ValidationError):
            Mqtt.model_validate({"version": other})


@pytest.mark.parametrize(
    ("given", "port"), [({}, 1883), ({"tls": True}, 8883), ({"tls": "true"}, 8883), ({"tls": True, "port": 1883}, 1883)]
)
def test_tls_moves_the_port_unless_it_is_set(given: dict[str, Any], port: int) -> None:
    assert Mqtt.model_validate(given).port == port


@pytest.mark.parametrize(
    "host", ["mqtt://broker", "broker:1883", "", "a b", "broker/x", "broker\x1b[2J", "me:hunter2@broker"]
)
def test_what_is_no_host_alone_is_refused(host: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Mqtt(host=host)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("host", ["broker", "broker.lan", "10.0.0.2", "::1", "fe80::1%eth0"])
def test_host_names_and_addresses_of_both_kinds_are_taken(host: str) -> None:
    assert Mqtt(host=host).host == host


@pytest.mark.parametrize("name", ["ca_file", "cert_file", "key_file"])
def test_tls_files_without_tls_are_refused_rather_than_left_unused(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is set but tls is off"):
        Mqtt.model_validate({name: "/x"})


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValidationError, match="go together"):
        Mqtt(tls=True, cert_file=Path("/x"))


def test_empty_text_means_none() -> None:
    mqtt = Mqtt.model_validate({"username": "", "password_file": "", "ca_file": ""})
    assert (mqtt.username, mqtt.password_file, mqtt.ca_file) == (None, None, None)


def test_a_leading_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Mqtt.model_validate({"tls": True, "ca_file": "~/ca.pem"}).ca_file == tmp_path / "ca.pem"


@pytest.mark.parametrize("root", ["", "/a", "a/", "a//b", "a/#", "+", "$SYS/a", "a\x00", "a" * 257])
def test_a_topic_root_that_cannot_be_published_under_is_refused(root: str) -> None:
    with pytest.raises(ValidationError):
        Mqtt(topic_root=root)


def test_the_longest_root_still_leaves_room_for_every_reply_topic() -> None:
    topics = Settings.model_validate({"mqtt": {"topic_root": "r" * 256}, "node": {"name": "n" * 64}}).topics
    topic = topics.of(Kind.REPLY, RequestPath(id="i" * 64, client="c" * 64))
    assert len(topic) <= MAX_REPLY_TOPIC_BYTES


def test_reply_topics_have_their_placeholders_filled_in() -> None:
    settings = Settings.model_validate({"mqtt": {"topic_root": "home/llm"}, "node": {"name": "pi"}})
    assert settings.reply_filters == ("reply/#", "home/llm/pi/reply/#")
    assert any(matches(f, settings.topics.reply(RequestPath(id="a"))) for f in settings.reply_filters)


@pytest.mark.parametrize("text", ["a/#/b", "a#", "a+/b", "{nod}/x", "{root", "$SYS/#", "", "a\x00b", "{}"])
def test_a_reply_topic_filter_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Mqtt(reply_topics=(text,))


@pytest.mark.parametrize("text", ["#", "+/reply/#", "a/+/b", "a/{node}/+", "reply"])
def test_reply_topic_filters_with_wildcards_are_taken(text: str) -> None:
    assert Mqtt(reply_topics=(text,)).reply_topics == (text,)


@pytest.mark.parametrize(
    ("path", "alias"),
    [
        ("starter", "starter"),
        ("/srv/models/qwen2.5-0.5b-instruct-q4_k_m.gguf", "qwen2.5-0.5b-instruct-q4_k_m"),
        ("my model (1).gguf", "my-model--1-"),
        ("/srv/" + "x" * 100 + ".gguf", "x" * 64),
    ],
)
def test_a_model_without_an_alias_is_called_after_its_file(path: str, alias: str) -> None:
    assert Model(path=path).alias == alias


def test_a_model_path_that_is_a_directory_by_its_look_is_refused() -> None:
    with pytest.raises(ValidationError, match="ends in no file name"):
        Model(path="/srv/")


def test_aliases_are_unique() -> None:
    with pytest.raises(ValidationError, match="two models are called 'a'"):
        Settings.model_validate({"models": [{"alias": "a"}, {"alias": "b"}, {"alias": "a", "path": "x.gguf"}]})


@pytest.mark.parametrize("alias", ["a b", "a/b", "x" * 65, "#"])
def test_an_alias_outside_the_alphabet_of_ids_is_refused(alias: str) -> None:
    with pytest.raises(ValidationError, match="not allowed"):
        Model(alias=alias)


def test_there_is_at_least_one_model() -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"models": []})


def test_a_models_defaults_obey_the_bounds_of_requests() -> None:
    for name in Defaults.model_fields:
        if name == "system":
            continue
        of_requests = [m for m in SamplingFields.model_fields[name].metadata if hasattr(m, "ge") or hasattr(m, "gt")]
        assert all(bound in Defaults.model_fields[name].metadata for bound in of_requests), name
    for wrong in ({"temperature": 6}, {"top_p": 0}, {"max_tokens": 0}, {"stop": [""]}, {"repeat_penalty": 0}):
        with pytest.raises(ValidationError):
            Defaults.model_validate(wrong)


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("mqtt", "port", [0, 65536, -1, "x", 1.5, True]),
        ("mqtt", "keepalive_s", [0, 4, 3601]),
        ("engine", "itl_target_ms", [0, 4, 10_001, float("nan"), float("inf")]),
        ("stream", "flush_ms", [-1, 5001]),
        ("stream", "flush_tokens", [0, 1025]),
        ("stream", "max_waiting", [0, 1001]),
        ("limits", "max_queue", [0, 10_001]),
        ("limits", "max_queue_per_client", [0, 10_001]),
        ("limits", "max_payload", [0, 15, 2**24 + 1]),
        ("limits", "max_tokens", [0, 2**20 + 1]),
        ("limits", "timeout_s", [0, -5, 7 * 86_400 + 1, float("inf")]),
        ("journal", "keep_s", [-1, 0, 30 * 86_400 + 1]),
        ("service", "grace_s", [-1, 3601, True]),
        ("service", "metrics_s", [-1, 86_401]),
        ("log", "level", ["loud", "", "INFO "]),
        ("log", "format", ["xml", ""]),
    ],
)
def test_values_out_of_bounds_are_refused(section: str, key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValidationError):
            Settings.model_validate({section: {key: value}})


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("context", [0, 63, 2**20 + 1]),
        ("parallel", [0, 129]),
        ("threads", [-1, 513]),
        ("gpu_layers", [-1, 10_000]),
        ("ubatch", [7, 513]),
        ("flash_attention", ["yes", True]),
        ("kv_type", ["q2_k"]),
        ("path", [""]),
    ],
)
def test_values_of_models_out_of_bounds_are_refused(key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValidationError):
            Model.model_validate({key: value})


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.mqtt.port = 1  # type: ignore[misc]  # mypy sees it too
    with pytest.raises(ValidationError, match="frozen"):
        settings.node = settings.node  # type: ignore[misc]  # mypy sees it too


def test_the_journal_is_where_the_platform_keeps_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    journal = Settings().journal
    assert journal.file() == tmp_path / ".local/state/edged/journal.db"
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    assert journal.file() == tmp_path / ".local/state/edged/journal.db"
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert journal.file() == Path("/state/edged/journal.db")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/edged:/var/lib/other")
    assert journal.file() == Path("/var/lib/edged/journal.db")
    assert Settings.model_validate({"journal": {"path": "/j.db"}}).journal.file() == Path("/j.db")


def test_a_user_without_a_home_is_told_to_set_the_journals_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match=r"\[journal\] path: .* set the path"):
        Settings().journal.file()


def test_a_quantised_cache_without_flash_attention_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs flash attention: set flash_attention to auto or on"):
        Model(kv_type="q8_0", flash_attention="off")
