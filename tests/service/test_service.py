"""The README's commands install a service that systemd runs, locks up, watches, and starts again."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

import pytest

from edged.engine.files import STARTER
from tests.docs import pages
from tests.service.box import NAME, SOURCE, Box, booted

#: llama.cpp may have to be compiled first.
pytestmark = [pytest.mark.model, pytest.mark.timeout(1500)]

EDGED = "/opt/edged/venv/bin/edged"


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A machine on which the service was installed as the README says, while its network was away."""
    with booted(tmp_path_factory.mktemp("box")) as box:
        box.run("systemctl", "start", "mosquitto")
        commands = commands_of("README.md", "As a service")
        box.run("sh", "-ec", f"cd {SOURCE}\n{commands}", network=False, timeout_s=1400)
        yield box


def commands_of(page: str, title: str) -> str:
    """Those of a section of the documents, without sudo: the box is root's, and may have none."""
    [section] = [one for one in pages.sections(page) if one.title == title]
    [fence] = section.fences
    return fence.text.replace("sudo ", "")


@contextmanager
def configured(box: Box, text: str) -> Iterator[None]:
    """The service with that configuration, in the block."""
    box.write("/etc/edged/edged.toml", text)
    box.run("systemctl", "restart", "edged", check=False)
    try:
        yield
    finally:
        box.run("rm", "/etc/edged/edged.toml")
        box.run("systemctl", "reset-failed", "edged", check=False)
        box.run("systemctl", "restart", "edged")


@contextmanager
def changed(box: Box, setting: str) -> Iterator[None]:
    """The service with another setting in its unit, in the block."""
    drop_in = "/run/systemd/system/edged.service.d/changed.conf"
    box.write(drop_in, f"[Service]\n{setting}\n")
    box.run("systemctl", "daemon-reload")
    try:
        box.run("systemctl", "restart", "edged")
        yield
    finally:
        box.run("rm", drop_in)
        box.run("systemctl", "daemon-reload")
        box.run("systemctl", "restart", "edged")


def ready(box: Box) -> None:
    box.until("edged", "StatusText", "starter: ready")


def test_what_the_readme_installs_is_enabled_and_answers(box: Box) -> None:
    ready(box)
    assert box.run("systemctl", "is-enabled", "edged").strip() == "enabled"
    final, _figures = box.run(EDGED, "ask", "Name three birds.", "--json", timeout_s=120).splitlines()
    assert json.loads(final)["node"] == NAME
    assert json.loads(final)["finish_reason"] in ("stop", "length")  # it may ramble


def test_it_waits_for_no_network(box: Box) -> None:
    """The container has none but the loopback."""
    assert "network-online.target" not in box.run("systemctl", "list-dependencies", "--after", "--plain", "edged")
    assert box.run("systemctl", "is-active", "network-online.target", check=False).strip() == "inactive"


def test_it_is_a_user_of_its_own_that_writes_in_one_place_and_runs_nothing_from_there(box: Box) -> None:
    ready(box)
    pid = box.show("edged", "MainPID")
    assert box.run("stat", "-c", "%U", f"/proc/{pid}").strip() == "edged"
    read_only = ("/", "/etc", "/usr/bin", "/opt/edged", "/run", "/srv")
    for place in (*read_only, "/var/lib/edged", "/tmp", "/var/tmp", "/dev/shm"):
        script = f"cp /bin/true {place}/mine 2>/dev/null && echo written; {place}/mine 2>/dev/null && echo run; true"
        # As root, for whom nothing but the sandbox's mounts is in the way.
        said = box.run("nsenter", "-t", pid, "-m", "sh", "-c", script).split()
        assert said == ([] if place in read_only else ["written"]), place


def test_its_engine_may_say_where_its_threads_run(box: Box) -> None:
    """Else it starts, but a long prompt may end with a hitch of the others (`edged.engine.cores.others_elsewhere`)."""
    python = "/opt/edged/venv/bin/python"
    with changed(box, f'ExecStartPre={python} -c "import os; os.sched_setaffinity(0, os.sched_getaffinity(0))"'):
        ready(box)


def test_an_answer_goes_on_when_the_daemon_is_killed(box: Box) -> None:
    ready(box)
    ear = ("mosquitto_sub", "-c", "-i", "ear", "-q", "1", "-t", f"edged/v1/{NAME}/reply/long")
    box.run(*ear, "-E")  # from now on the broker keeps what comes for it
    with box.open(*ear, "-W", "120") as listener:
        assert listener.stdout is not None
        request = {"prompt": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,", "raw": True, "temperature": 0, "max_tokens": 400}
        messages = (json.loads(line) for line in listener.stdout)
        box.run("mosquitto_pub", "-q", "1", "-t", f"edged/v1/{NAME}/req/long", "-m", json.dumps(request))
        numbers = []
        for message in messages:
            numbers.append(message["seq"])
            if len(numbers) == 5:
                box.run("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "edged")
            if message["type"] == "final":
                break
        listener.terminate()
    assert (message["finish_reason"], message["metrics"]["resumed"]) == ("length", 1)
    assert sorted(set(numbers)) == list(range(message["seq"] + 1))
    assert box.show("edged", "NRestarts") == "1"


def test_a_daemon_that_hangs_is_started_again_by_the_watchdog(box: Box) -> None:
    ready(box)
    with changed(box, "WatchdogSec=8"):
        ready(box)
        box.run("systemctl", "kill", "-s", "STOP", "--kill-whom=main", "edged")
        box.until("edged", "NRestarts", "1")
        ready(box)
        assert "Watchdog timeout" in box.run("journalctl", "--no-pager", "-u", "edged", "-n", "50")


def test_a_broker_that_is_away_is_in_the_status_line(box: Box) -> None:
    with configured(box, '[mqtt]\nhost = "127.0.0.1"\nport = 1\n'):
        box.until("edged", "StatusText", r"no connection to the broker at 127\.0\.0\.1:1: .* \| starter: ready")
        warnings = [json.loads(line) for line in box.log("edged", "-p", "warning").splitlines()]
        assert {line["level"] for line in warnings} == {"warning"}
        assert {line["event"] for line in warnings} == {"not connected to broker"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[mqtt]\nhots = "broker.lan"\n', "[mqtt] hots: unknown key; did you mean host? (in /etc/edged/edged.toml)"),
        ('[[models]]\npath = "/home/pi/small.gguf"\n', "model file '/home/pi/small.gguf' cannot be read: permission"),
    ],
)
def test_what_is_wrong_with_the_settings_is_said_once(box: Box, text: str, sentence: str) -> None:
    box.write("/home/pi/small.gguf", "")
    with configured(box, text):
        box.until("edged", "ActiveState", "failed")
        assert (box.show("edged", "ExecMainStatus"), box.show("edged", "NRestarts")) == ("78", "0")
        assert f"edged: {sentence}" in box.log("edged", "-p", "err")


def test_the_password_comes_as_a_credential(box: Box) -> None:
    box.run("mosquitto_passwd", "-b", "-c", "/etc/mosquitto/passwords", "edged", "correct horse")
    box.run("chown", "mosquitto", "/etc/mosquitto/passwords")
    box.write("/etc/mosquitto/conf.d/users.conf", "allow_anonymous false\npassword_file /etc/mosquitto/passwords\n")
    box.run("systemctl", "restart", "mosquitto")
    box.write("/etc/credstore/edged.mqtt-password", "wrong\n", "600")
    try:
        with configured(box, '[mqtt]\nusername = "edged"\n'):
            box.until("edged", "StatusText", r"the broker at localhost:1883 refused .* \| starter: ready")
            box.write("/etc/credstore/edged.mqtt-password", "correct horse\n", "600")
            box.run("systemctl", "restart", "edged")
            ready(box)
    finally:
        box.run("rm", "/etc/mosquitto/conf.d/users.conf", "/etc/credstore/edged.mqtt-password")
        box.run("systemctl", "restart", "mosquitto")


def test_what_root_has_tuned_the_service_uses(box: Box) -> None:
    """Also a file that was requantised, which root has written and the service may read."""
    with configured(box, ""):
        ready(box)
        commands = commands_of("docs/tune.md", "For the service").replace("--write", "--write --quick")
        box.run("sh", "-ec", commands, timeout_s=600)
        ready(box)
        written = tomllib.loads(box.run("cat", "/etc/edged/edged.toml"))
        path = written.get("models", [{}])[0].get("path", STARTER)
        if path == STARTER:  # no other file was faster, as on a processor with AMX
            path = "SmolLM2-135M-Instruct.Q4_1.gguf"
        card = json.loads(box.run("mosquitto_sub", "-C", "1", "-W", "20", "-t", f"edged/v1/{NAME}/status"))
        assert [model["file"] for model in card["models"]] == [PurePath(path).name]


def test_it_says_offline_before_it_goes(box: Box) -> None:
    ready(box)
    box.run("systemctl", "stop", "edged")
    assert box.show("edged", "Result") == "success"
    card = box.run("mosquitto_sub", "-C", "1", "-W", "20", "-t", f"edged/v1/{NAME}/status")
    assert json.loads(card)["state"] == "offline"
    assert '"stopped"' in box.log("edged")
    box.run("systemctl", "start", "edged")
