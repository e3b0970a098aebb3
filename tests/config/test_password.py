"""The password comes from a file or a credential, and is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from edged.config import ConfigError, Settings, load, secret_warnings
from edged.config.settings import Mqtt


def _with(path: Path) -> Mqtt:
    return Mqtt(username="me", password_file=path)


def _secret(mqtt: Mqtt) -> str:
    password = mqtt.password()
    assert password is not None
    return password.get_secret_value()


@pytest.mark.parametrize(
    ("content", "password"),
    [("hunter2", "hunter2"), ("hunter2\n", "hunter2"), ("hunter2\r\n", "hunter2"), ("a\n\n", "a\n"), (" ü ", " ü ")],
)
def test_the_password_is_the_files_text_without_one_newline(tmp_path: Path, content: str, password: str) -> None:
    path = tmp_path / "password"
    path.write_bytes(content.encode())
    assert _secret(_with(path)) == password


def test_the_password_never_prints(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("hunter2\n")
    settings = Settings.model_validate({"mqtt": {"username": "me", "password_file": path}})
    password = settings.mqtt.password()
    shown = f"{settings!r} {settings} {settings.model_dump_json()} {password!r} {password} {[password]}"
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"\n", "is empty"), (b"\xff\n", "not UTF-8"), (b"x" * 65536, "longer than the 65535 bytes")],
)
def test_a_file_without_a_usable_password_is_an_error(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"\[mqtt\] password_file: .*{reason}"):
        _with(path).password()


def test_a_missing_password_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere' cannot be read: No such file"):
        _with(tmp_path / "nowhere").password()


def test_a_password_without_a_user_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="needs username"):
        Mqtt(password_file=tmp_path / "password")


def test_systemds_credential_is_used_where_no_file_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert Mqtt(username="me").password() is None
    (tmp_path / "mqtt-password").write_text("from systemd\n")
    assert _secret(Mqtt(username="me")) == "from systemd"
    assert Mqtt().password() is None, "without a user there is nobody whose password it is"
    assert secret_warnings(Settings()) == [
        "[mqtt] username: it is not set, so the credential mqtt-password is not used"
    ]
    own = tmp_path / "own"
    own.write_text("own\n")
    assert _secret(_with(own)) == "own"


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_a_password_file_that_everyone_can_read_is_warned_about(tmp_path: Path, mode: int, warned: bool) -> None:
    path = tmp_path / "password"
    path.write_text("hunter2\n")
    path.chmod(mode)
    heard: list[str] = []
    settings = load(explicit={"mqtt": {"username": "me", "password_file": path}}, warn=heard.append)
    assert bool(heard) is warned
    assert secret_warnings(settings) == heard
    assert all("everyone on this machine can read" in text and "hunter2" not in text for text in heard)
