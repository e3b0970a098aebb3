"""The command line: what it prints, and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

import edged
from edged import cli
from edged.config import ConfigError, Settings, load, sample

Run = Callable[..., subprocess.CompletedProcess[str]]


def _invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture
def command(tmp_path: Path) -> Run:
    """The real command in a process of its own, which reads no configuration but what the test gives."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        empty = tmp_path / "empty.toml"
        empty.touch()
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "edged", *arguments],
            env=os.environ | {"EDGED_CONFIG": str(empty), "STATE_DIRECTORY": str(tmp_path)} | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """A daemon that only notes what it was started with, and exits with the code 7."""
    started: list[Settings] = []

    def run(settings: Settings) -> int:
        started.append(settings)
        return 7

    fake = ModuleType("edged.daemon")
    fake.run = run  # type: ignore[attr-defined]  # a module made on the spot
    monkeypatch.setitem(sys.modules, "edged.daemon", fake)
    monkeypatch.setattr(edged, "daemon", fake, raising=False)
    monkeypatch.setattr("edged.observe.logs.configure", lambda *_: _Silent())
    return started


class _Silent:
    def warning(self, event: str, **fields: str) -> None:
        sys.stderr.write(f"logged {event}: {fields}\n")


def test_the_version_is_printed(command: Run) -> None:
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"edged {edged.__version__}\n", "")


def test_the_version_is_quick_to_print_because_nothing_else_is_loaded() -> None:
    code = (
        "import sys; sys.argv = ['edged', '--version']\n"
        "from edged.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "typer" in loaded
    assert not loaded & {"pydantic", "pydantic_settings", "paho", "structlog", "llama_cpp", "numpy", "jinja2", "rich"}


def test_help_names_every_command_and_shell_completion() -> None:
    shown = _invoke("--help").stdout
    for name in ("run", "ask", "config", "check-config", "models", "--version", "--install-completion"):
        assert f"  {name}" in shown


@pytest.mark.parametrize("arguments", [(), ("frobnicate",), ("run", "--frobnicate"), ("ask", "--port", "many", "x")])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert _invoke(*arguments).exit_code == 2


def test_the_sample_is_printed_and_loads(command: Run) -> None:
    done = command("config")
    assert (done.returncode, done.stdout, done.stderr) == (0, sample(), "")


def test_a_reader_that_closes_the_pipe_is_no_error_worth_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "edged", "config"],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert "Traceback" not in done.stderr


def test_a_good_configuration_is_summed_up(command: Run, tmp_path: Path) -> None:
    path, password = tmp_path / "own.toml", tmp_path / "password"
    password.write_text("hunter2\n")
    password.chmod(0o600)
    path.write_text(f'[mqtt]\nhost = "broker.lan"\nusername = "me"\npassword_file = "{password}"\n')
    done = command("check-config", "--config", str(path), EDGED_LIMITS__MAX_QUEUE="7")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"# ok: {path}\n# password: {password}\n# journal: {tmp_path}/journal.db\n")
    assert f'host = "broker.lan"  # in {path}' in done.stdout
    assert "max_queue = 7  # from environment EDGED_LIMITS__MAX_QUEUE" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr
    assert tomllib.loads(done.stdout)["mqtt"]["host"] == "broker.lan"


def test_a_wrong_configuration_is_told_in_sentences_and_exits_with_78(command: Run, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[mqtt]\nport = 0\nhots = 'x'\n")
    for name in ("check-config", "run", "models", "ask"):
        done = command(name, "--config", str(path), *(["hello"] if name == "ask" else []))
        assert done.returncode == 78
        assert done.stdout == ""
        assert done.stderr.splitlines() == [
            f"edged: [mqtt] port: 0 is too small: at least 1 (in {path})",
            f"edged: [mqtt] hots: unknown key; did you mean host? (in {path})",
        ]


def test_a_missing_file_exits_with_78(command: Run, tmp_path: Path) -> None:
    for done in (command("run", "--config", str(tmp_path / "no")), command("run", EDGED_CONFIG=str(tmp_path / "no"))):
        assert done.returncode == 78
        assert "there is no such file" in done.stderr
        assert "Traceback" not in done.stderr


def test_check_config_proves_that_named_files_are_usable(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("no certificate")
    path = tmp_path / "own.toml"
    path.write_text(f'[mqtt]\ntls = true\nca_file = "{ca}"\n')
    wrong = _invoke("check-config", "--config", str(path))
    assert wrong.exit_code == 78
    assert f"the authorities in '{ca}' cannot be used" in wrong.stderr
    ca.unlink()
    missing = _invoke("check-config", "--config", str(path))
    assert missing.exit_code == 78
    assert f"[mqtt] ca_file: '{ca}' cannot be read" in missing.stderr


def test_check_config_warns_about_what_is_odd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("hunter2\n")
    password.chmod(0o644)
    monkeypatch.setenv("EDGED_MQTT_HOST", "x")
    monkeypatch.setenv("EDGED_MQTT__USERNAME", "me")
    monkeypatch.setenv("EDGED_MQTT__PASSWORD_FILE", str(password))
    shown = _invoke("check-config")
    assert shown.exit_code == 0
    first, second = shown.stderr.splitlines()
    assert first.startswith("warning: environment EDGED_MQTT_HOST is no setting")
    assert "everyone on this machine can read" in second


def test_check_config_refuses_models_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("no model")
    paths = ["/nowhere/m.gguf", str(text), "starter"]
    monkeypatch.setenv("EDGED_MODELS", json.dumps([{"alias": f"m{i}", "path": path} for i, path in enumerate(paths)]))
    shown = _invoke("check-config")
    assert (shown.exit_code, shown.stdout) == (78, "")
    first, second = shown.stderr.splitlines()
    assert first.startswith("edged: [[models]] m0: model file '/nowhere/m.gguf' does not exist")
    assert second.startswith("edged: [[models]] m1: ")


def _gguf(path: Path) -> Path:
    """A GGUF file that is nothing but a header (ggml/docs/gguf.md)."""

    def text(value: str) -> bytes:
        return len(value.encode()).to_bytes(8, "little") + value.encode()

    pairs = {"general.architecture": "llama", "general.name": "Evil\x1b[2J", "general.size_label": "135M"}
    entries = [text(name) + (8).to_bytes(4, "little") + text(value) for name, value in pairs.items()]
    entries.append(text("llama.context_length") + (4).to_bytes(4, "little") + (2048).to_bytes(4, "little"))
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + len(entries).to_bytes(8, "little")
    path.write_bytes(head + b"".join(entries))
    return path


def test_models_are_listed_with_what_their_files_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = _gguf(tmp_path / "small.gguf")
    monkeypatch.setenv("EDGED_MODELS", json.dumps([{"path": str(file), "context": 512}]))
    shown = _invoke("models")
    assert shown.exit_code == 0
    assert [line.split(maxsplit=1) for line in shown.stdout.splitlines()] == [
        ["small"],
        ["file", str(file)],
        ["size", "0 MB"],
        ["name", "'Evil\\x1b[2J'"],
        ["architecture", "llama"],
        ["parameters", "135M"],
        ["quantisation", "?"],
        ["context", "512 tokens here, trained for 2048"],
    ]


def test_a_model_that_is_missing_or_damaged_is_told_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + b"\xff" * 100)
    models = [{"path": "/nowhere.gguf"}, {"path": str(damaged)}, {"path": str(_gguf(tmp_path / "good.gguf"))}]
    monkeypatch.setenv("EDGED_MODELS", json.dumps(models))
    shown = _invoke("models")
    assert shown.exit_code == 1
    assert "nowhere\n  model file '/nowhere.gguf' does not exist" in shown.stdout
    assert f"damaged\n  model file '{damaged}' is no GGUF file" in shown.stdout
    assert "good\n  file" in shown.stdout


def test_run_starts_the_daemon_with_the_settings_and_exits_with_its_code(
    daemon: list[Settings], tmp_path: Path
) -> None:
    path = tmp_path / "own.toml"
    path.write_text('[node]\nname = "pi"\n')
    assert _invoke("run", "--config", str(path)).exit_code == 7
    assert daemon == [load(path)]
    assert daemon[0].node.name == "pi"


def test_run_logs_warnings_rather_than_printing_them(monkeypatch: pytest.MonkeyPatch, daemon: list[Settings]) -> None:
    monkeypatch.setenv("EDGED_PORT", "tcp://10.0.0.1:1883")
    done = _invoke("run")
    assert done.stderr.startswith("logged configuration: {'message': 'environment EDGED_PORT is no setting")
    assert len(daemon) == 1


def test_run_does_not_start_with_files_it_cannot_read(
    monkeypatch: pytest.MonkeyPatch, daemon: list[Settings], tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGED_MQTT__USERNAME", "me")
    monkeypatch.setenv("EDGED_MQTT__PASSWORD_FILE", str(tmp_path / "no"))
    done = _invoke("run")
    assert done.exit_code == 78
    assert done.stderr.startswith("edged: [mqtt] password_file: ")
    assert daemon == []


@pytest.mark.usefixtures("daemon")
def test_what_the_daemon_finds_wrong_at_its_start_exits_with_78(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_settings: Settings) -> int:
        raise ConfigError("the one", "the other")

    monkeypatch.setattr("edged.daemon.run", run)
    done = _invoke("run")
    assert (done.exit_code, done.stderr) == (78, "edged: the one\nedged: the other\n")


def test_a_model_that_is_not_there_exits_with_78(command: Run) -> None:
    done = command("run", EDGED_MODELS='[{"path": "/nowhere.gguf"}]')
    assert done.returncode == 78
    assert (
        done.stderr == "edged: model file '/nowhere.gguf' does not exist; give the path of a GGUF file, or 'starter'\n"
    )


def test_without_the_daemons_extra_run_says_what_to_install_and_exits_with_69(
    monkeypatch: pytest.MonkeyPatch, daemon: list[Settings]
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "llama_cpp" else object())
    done = _invoke("run")
    assert done.exit_code == 69
    assert done.stderr == "edged: the daemon needs llama_cpp as well: pip install 'edged[daemon]'\n"
    assert daemon == []


def test_the_daemons_modules_are_those_of_its_extra() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extra = pyproject["project"]["optional-dependencies"]["daemon"]
    modules = {"llama-cpp-python": "llama_cpp"}
    names = [requirement.partition(">")[0].partition("=")[0] for requirement in extra]
    assert sorted(modules.get(name, name) for name in names) == sorted(cli.DAEMON_MODULES)


def test_a_defect_ends_in_a_traceback_without_local_variables() -> None:
    """Local variables hold passwords and prompts."""
    code = (
        "import edged.config\n"
        "def broken():\n    password = 'hun' + 'ter2'\n    raise RuntimeError('defect')\n"
        "edged.config.sample = broken\n"
        "import sys; sys.argv = ['edged', 'config']\n"
        "from edged.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "RuntimeError: defect" in done.stderr
    assert "hunter2" not in done.stderr
