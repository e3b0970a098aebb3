"""`edged tune` on made-up machines: what is tried with which settings, what is told, and what is written."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edged.config import ConfigError, Sources, load
from edged.engine.files import ModelFileError
from edged.tune import command, others
from edged.tune.search import TrialFailed
from tests.config.clean import clean_environment
from tests.tune.scripted import Machine, model_file

#: Of a machine on which Q4_0 is twice as fast, and a little worse.
QUALITIES = {"Q4_1": 20.0, "Q4_0": 21.0, "Q8_0": 20.0}


@dataclass
class Bench:
    """A configuration with one model, and what a run of the command does with it."""

    directory: Path
    said: str = ""
    told: str = ""
    code: int = -1
    source: Path = field(init=False)
    config: Path = field(init=False)

    def __post_init__(self) -> None:
        self.source = model_file(self.directory / "tiny.Q4_1.gguf", "Q4_1")
        self.config = self.directory / "edged.toml"
        self.configure()

    def configure(self, *lines: str) -> None:
        self.config.write_text("\n".join([f'[[models]]\npath = "{self.source}"', "threads = 2", *lines, ""]))

    def tune(self, machine: Machine, name: str | None = None, *, config: bool = True, **options: bool) -> Bench:
        said: list[str] = []
        told: list[str] = []
        wanted = {"write": False, "quick": True, "as_json": False, "requantise": True} | options
        self.code = command.tune(
            name,
            Sources.gather(self.config if config else None),
            say=said.append,
            tell=told.append,
            trials=machine,
            **wanted,
        )
        self.said, self.told = "\n".join(said), "".join(told)
        return self

    @property
    def model(self) -> dict[str, Any]:
        """The model's section of the configuration file."""
        return dict(tomllib.loads(self.config.read_text())["models"][0])

    @property
    def kept(self) -> list[str]:
        """Types of the requantised files that are there."""
        return sorted(path.name.split(".")[1] for path in (self.directory / "state" / "models").glob("*"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    clean_environment(monkeypatch, tmp_path)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(command, "usable_cores", lambda: 4)
    monkeypatch.setattr(others, "look", lambda _: 0.0)
    monkeypatch.setattr(others.Watch, "others", lambda _: 0.0)
    return Bench(tmp_path)


def _prefers(**wanted: object) -> Callable[[dict[str, Any]], float]:
    """A machine that is twice as fast for each of these settings."""
    return lambda load: 100.0 * 2 ** sum(load[key] == value for key, value in wanted.items())


def _by_file(load: dict[str, Any]) -> float:
    return 200.0 if ".Q4_0." in load["path"] else 100.0


def test_threads_attention_batch_and_types_are_tried_in_this_order(bench: Bench) -> None:
    bench.tune(machine := Machine(perplexities=QUALITIES))
    rows = [line.split("|")[1].strip() for line in bench.said.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "* current",
        *["threads 1", "threads 3", "threads 4"],
        *["flash on", "flash off"],
        *["ubatch 32", "ubatch 128", "ubatch 256"],
        *["Q4_0", "Q8_0"],
    ]
    assert {order["op"] for order in machine.orders} == {"speed", "perplexity", "requantise"}
    assert bench.code == 0


def test_trials_run_with_the_settings_that_the_engine_would_have(bench: Bench) -> None:
    bench.configure("context = 2048", "parallel = 3", 'kv_type = "q8_0"')
    bench.tune(machine := Machine(perplexities=QUALITIES))
    assert set(machine.tried("context")) == {2048}
    assert set(machine.tried("parallel")) == {3}
    assert set(machine.tried("kv_type")) == {"q8_0"}
    # which needs flash attention
    assert set(machine.tried("flash_attention")) == {"auto", "on"}


def test_where_nothing_is_faster_one_keeps_what_one_has(bench: Bench) -> None:
    before = bench.config.read_text()
    bench.tune(Machine(perplexities=QUALITIES), write=True)
    assert bench.said.endswith("Keep what you have: nothing was more than 3% faster.")
    assert "nothing to write" in bench.told
    assert bench.config.read_text() == before
    assert bench.kept == []


def test_without_write_the_winner_is_shown_and_nothing_is_changed(bench: Bench) -> None:
    before = bench.config.read_text()
    bench.tune(Machine(_prefers(ubatch=128, threads=3), QUALITIES))
    assert "For the model 'tiny.Q4_1':\n[[models]]\nthreads = 3\nubatch = 128" in bench.said
    assert "300% faster on the whole" in bench.said
    assert bench.config.read_text() == before


def test_write_puts_the_winning_keys_into_the_file_and_says_so(bench: Bench) -> None:
    bench.configure("# careful with this", 'flash_attention = "off"  # it was slow')
    bench.tune(Machine(_prefers(ubatch=128, flash_attention="on"), QUALITIES), write=True)
    assert load(bench.config).models[0].ubatch == 128
    assert 'flash_attention = "on"  # it was slow' in bench.config.read_text()
    assert "# careful with this" in bench.config.read_text()
    assert "[[models]] tiny.Q4_1: ubatch = 128, flash_attention = on; it takes effect when" in bench.told


def test_a_requantised_winner_is_kept_and_requests_go_on_calling_it_what_they_did(bench: Bench) -> None:
    bench.tune(Machine(_by_file, QUALITIES), write=True)
    assert bench.kept == ["Q4_0"]
    assert bench.model["alias"] == "tiny.Q4_1"
    assert Path(bench.model["path"]).parent == bench.directory / "state" / "models"
    assert "Its perplexity is 5.0% higher: answers get a little worse." in bench.said
    assert "21.00 (+5.0%)" in bench.said
    # and once more, with what is configured now: it is Q4_0 already
    bench.tune(machine := Machine(_by_file, QUALITIES))
    assert "requantise" not in {order["op"] for order in machine.orders}
    assert "Q4_0 has nothing to gain from it" in bench.told


def test_a_requantised_file_that_loses_too_much_is_told_and_not_chosen(bench: Bench) -> None:
    bench.tune(Machine(_by_file, QUALITIES | {"Q4_0": 26.0}))
    assert "Q4_0 was not considered: its perplexity is 30% higher, and 20% is the most." in bench.said
    assert "Keep what you have" in bench.said
    assert bench.kept == []


def test_a_requantised_file_whose_quality_is_unknown_is_not_chosen(bench: Bench) -> None:
    bench.tune(Machine(_by_file, {"Q4_1": 20.0}))
    assert "Q4_0 was not considered: what its quality is could not be measured." in bench.said


def test_no_requantise_makes_no_file(bench: Bench) -> None:
    bench.tune(machine := Machine(_by_file), requantise=False)
    assert {order["op"] for order in machine.orders} == {"speed"}


def test_a_failed_candidate_is_a_row_that_says_why(bench: Bench) -> None:
    def speed(load: dict[str, Any]) -> float:
        if load["ubatch"] == 256:
            raise TrialFailed("its process was ended by SIGABRT")
        return 100.0

    bench.tune(Machine(speed, QUALITIES))
    [row] = [line for line in bench.said.splitlines() if "ubatch 256" in line]
    assert row.endswith("| failed: its process was ended by SIGABRT")
    assert bench.code == 0


def test_where_nothing_works_the_reason_is_told_and_the_exit_code_is_1(bench: Bench) -> None:
    def speed(_: dict[str, Any]) -> float:
        raise TrialFailed("no memory")

    before = bench.config.read_text()
    bench.tune(Machine(speed), write=True)
    assert bench.code == 1
    assert bench.told.endswith("edged: nothing could be measured: no memory\n")
    assert bench.config.read_text() == before


def test_an_interrupt_leaves_no_files_behind(bench: Bench) -> None:
    def speed(load: dict[str, Any]) -> float:
        if ".Q8_0." in load["path"]:
            raise KeyboardInterrupt
        return 100.0

    with pytest.raises(KeyboardInterrupt):
        bench.tune(Machine(speed, QUALITIES))
    assert bench.kept == []


def test_json_has_every_trial_and_the_changes(bench: Bench) -> None:
    bench.tune(Machine(_by_file, QUALITIES), as_json=True)
    found = json.loads(bench.said)
    assert found["model"] == "tiny.Q4_1"
    assert found["gain"] == pytest.approx(1.0)
    assert sorted(found["changes"]) == ["alias", "path"]
    [chosen] = [trial for trial in found["trials"] if trial["chosen"]]
    assert chosen["what"] == "Q4_0"
    assert chosen["loss"] == pytest.approx(0.05)
    assert chosen["speed"]["score"] == pytest.approx(200)


def test_a_model_without_a_section_gets_one_that_names_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The starter model is there without a section; a section of its own must not lose its name."""
    bench.config.write_text('[node]\nname = "a"\n')
    monkeypatch.setattr("edged.engine.files.resolve", lambda _: bench.source)
    bench.tune(Machine(_prefers(ubatch=128)), write=True, requantise=False)
    assert bench.model == {"alias": "starter", "path": "starter", "ubatch": 128}
    assert "added to" in bench.told


def test_a_file_that_is_not_configured_can_be_tuned_and_added(bench: Bench) -> None:
    other = model_file(bench.directory / "other.gguf", "Q4_1")
    bench.tune(Machine(_prefers(ubatch=128)), str(other), write=True, requantise=False)
    models = load(bench.config).models
    assert [(m.alias, m.path, m.ubatch) for m in models] == [
        ("tiny.Q4_1", str(bench.source), 64),
        ("other", str(other), 128),
    ]


@pytest.mark.parametrize("name", ["alias", "path"])
def test_a_configured_model_is_found_by_alias_and_by_path(bench: Bench, name: str) -> None:
    other = model_file(bench.directory / "other.gguf", "Q4_1")
    with bench.config.open("a") as file:
        file.write(f'[[models]]\nalias = "second"\npath = "{other}"\n')
    wanted = {"alias": "second", "path": str(other.parent / "." / other.name)}[name]
    bench.tune(Machine(_prefers(ubatch=128)), wanted, write=True, requantise=False)
    assert [m.ubatch for m in load(bench.config).models] == [64, 128]


def test_what_cannot_be_tuned_is_a_sentence(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"^nobody: no model has this alias \(there are: tiny\.Q4_1\), and "):
        bench.tune(Machine(), "nobody")
    bench.source.unlink()
    with pytest.raises(ModelFileError, match="does not exist"):
        bench.tune(Machine())


def test_what_could_not_be_written_is_told_before_anything_is_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.engine.files.resolve", lambda _: bench.source)
    machine = Machine()
    with pytest.raises(ConfigError, match=r"no configuration file; make one with `edged config > edged\.toml`"):
        bench.tune(machine, config=False, write=True)
    monkeypatch.setenv("EDGED_MODELS", json.dumps([{"path": str(bench.source)}]))
    with pytest.raises(ConfigError, match=r"\$EDGED_MODELS"):
        bench.tune(machine, write=True)
    assert machine.orders == []


def test_busy_neighbours_are_told_of(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "look", lambda _: 0.7)
    monkeypatch.setattr(others.Watch, "others", lambda _: 0.6)
    bench.tune(Machine(), requantise=False)
    assert bench.told.startswith("warning: other processes use 0.7 processors of this machine")
    assert "warning: other processes used up to 0.6 processors meanwhile" in bench.told


def test_processors_that_others_use_do_not_include_our_own_work() -> None:
    watch = others.Watch(machine=others.Watch.begin().machine - 10, ours=others.Watch.begin().ours - 10, at=0)
    assert watch.others() < others.QUIET


@pytest.mark.parametrize(
    ("config", "path", "state", "warned"),
    [
        ("/etc/edged/edged.toml", "/root/.local/state/edged/models/x.gguf", None, True),
        ("/etc/edged/edged.toml", "/var/lib/edged/models/x.gguf", "/var/lib/edged", False),
        ("/srv/edged.toml", "/home/me/.local/state/edged/models/x.gguf", None, False),
        ("/etc/edged/edged.toml", None, None, False),
    ],
)
def test_a_file_that_the_service_cannot_see_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, config: str, path: str | None, state: str | None, warned: bool
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    if state:
        monkeypatch.setenv("STATE_DIRECTORY", state)
    assert bool(command.hidden(Path(config), {"path": path} if path else {"threads": 1})) == warned
