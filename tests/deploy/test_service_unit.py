"""systemd/edged.service and its drop-ins, judged by systemd itself."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from edged.config import Settings
from edged.config.settings import CREDENTIAL
from tests.deploy.tools import ROOT, program

UNIT = ROOT / "systemd" / "edged.service"
DROP_INS = sorted((ROOT / "systemd" / "drop-ins").glob("*.conf"))
#: What `systemd-analyze security` may say at most: 0 is the tightest, ordinary services have more than 9.
EXPOSURE = 2.0


def analyze(*arguments: str) -> str:
    """What systemd-analyze says, on both streams; it must not fail."""
    command = [program("systemd-analyze", "systemd"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def installed(directory: Path, *drop_ins: Path) -> Path:
    """A copy of the unit, with the daemon where this machine has a program at all, and with drop-ins."""
    unit = directory / "edged.service"
    unit.write_text(UNIT.read_text().replace("/opt/edged/venv/bin/edged", "/bin/true"))
    for drop_in in drop_ins:
        place = directory / "edged.service.d" / drop_in.name
        place.parent.mkdir(exist_ok=True)
        place.write_text(drop_in.read_text())
    return unit


def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    assert analyze("verify", str(installed(tmp_path))) == ""


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: path.name)
def test_systemd_has_nothing_to_say_about_a_drop_in(tmp_path: Path, drop_in: Path) -> None:
    assert analyze("verify", str(installed(tmp_path, drop_in))) == ""


def test_a_misspelt_setting_would_be_noticed(tmp_path: Path) -> None:
    """That the two tests above can fail at all."""
    wrong = tmp_path / "wrong.conf"
    wrong.write_text("[Service]\nPrivateDevises=yes\n")
    assert "PrivateDevises" in analyze("verify", str(installed(tmp_path, wrong)))


def test_the_service_is_locked_up(tmp_path: Path) -> None:
    said = analyze("security", "--offline=true", "--no-pager", str(installed(tmp_path)))
    exposure = re.search(r"Overall exposure level for edged\.service: ([\d.]+)", said)
    assert exposure is not None, said
    assert float(exposure[1]) <= EXPOSURE, said


def test_systemd_waits_longer_than_running_answers_may_take() -> None:
    (stop,) = values("TimeoutStopSec")
    assert int(stop) >= Settings().service.grace_s + 5


def test_a_wrong_configuration_is_not_tried_again_and_again() -> None:
    (command,) = values("ExecStart")
    assert command.endswith("/bin/edged run")
    assert values("Restart") == ["on-failure"]
    assert values("RestartPreventExitStatus") == ["78"]  # EX_CONFIG, as `edged run` exits


def test_the_password_comes_as_the_credential_that_the_daemon_looks_for() -> None:
    (credential,) = values("LoadCredential")
    name, _, source = credential.partition(":")
    assert name == CREDENTIAL
    assert not source.startswith("/"), "an absolute path would make a password obligatory"


def test_the_daemon_cannot_write_its_own_settings() -> None:
    """systemd would give a ConfigurationDirectory= to the daemon's user."""
    assert values("DynamicUser") == ["yes"]
    assert values("ProtectSystem") == ["strict"]
    assert values("ConfigurationDirectory") == values("ReadWritePaths") == []
