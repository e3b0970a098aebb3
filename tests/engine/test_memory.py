"""A model that has no room is refused before it is loaded, with the figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.engine import cgroup, memory
from edged.engine.files import ModelFile, describe
from edged.engine.memory import Room, need, room, shortage
from edged.engine.model import offloads
from edged.engine.process import Lost, oom_kills
from edged.engine.protocol import Failed, Load
from tests.engine import gguf
from tests.engine.gguf import Numbers, u32
from tests.engine.handles import Handle

MIB = 1024 * 1024


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """1,000 MiB available on the machine; no limit in the group of edged.service, whose directory this is."""
    (tmp_path / "meminfo").write_text("MemTotal: 4096000 kB\nMemAvailable:    1024000 kB\n")
    (tmp_path / "self").write_text("0::/edged.service\n")
    group = tmp_path / "edged.service"
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text(f"{100 * MIB}\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(cgroup, "_SELF", tmp_path / "self")
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path)
    return group


@pytest.mark.usefixtures("machine")
def test_without_limits_the_machine_counts() -> None:
    assert room() == Room(1000 * MIB, "on this machine")


def test_a_groups_limit_counts_where_it_leaves_less(machine: Path) -> None:
    (machine / "memory.max").write_text(f"{500 * MIB}\n")
    assert room() == Room(400 * MIB, "in the control group 'edged.service'")


def test_what_a_group_uses_for_files_can_be_had(machine: Path) -> None:
    (machine / "memory.high").write_text(f"{300 * MIB}\n")
    (machine / "memory.stat").write_text(f"anon 7\nactive_file {20 * MIB}\ninactive_file {30 * MIB}\n")
    assert room() == Room(250 * MIB, "in the control group 'edged.service'")


def test_a_limit_of_a_group_around_the_own_one_counts(machine: Path) -> None:
    (machine.parent / "memory.max").write_text(f"{50 * MIB}\n")
    (machine.parent / "memory.current").write_text(f"{40 * MIB}\n")
    found = room()
    assert found is not None
    assert found.available == 10 * MIB


@pytest.mark.parametrize("place", ["memory/box/edged", "memory/box", "memory"])  # in a container its own is the root
def test_limits_of_version_1_count_as_well(machine: Path, place: str) -> None:
    (machine.parent / "self").write_text("7:cpu,memory:/box/edged\n6:pids:/elsewhere\n0::/edged.service\n")
    group = machine.parent / place
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{500 * MIB}\n")
    (group / "memory.usage_in_bytes").write_text(f"{300 * MIB}\n")
    (group / "memory.stat").write_text(
        f"active_file 1\ninactive_file 2\ntotal_active_file 0\ntotal_inactive_file {MIB}\n"
    )
    assert room() == Room(201 * MIB, f"in the control group {group.name!r}")
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # none
    assert room() == Room(1000 * MIB, "on this machine")


def test_the_kernels_kills_are_counted_with_both_versions(machine: Path) -> None:
    assert oom_kills() == 0
    (machine.parent / "self").write_text("7:memory:/edged\n0::/edged.service\n")
    group = machine.parent / "memory" / "edged"
    group.mkdir(parents=True)
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert oom_kills() == 3
    (machine / "memory.events").write_text("low 0\noom 5\noom_kill 4\n")
    assert oom_kills() == 3
    (machine.parent / "self").write_text("0::/edged.service\n")
    assert oom_kills() == 4


def test_where_nothing_can_be_found_out_nothing_is_refused(machine: Path, starter: Path) -> None:
    (machine.parent / "meminfo").unlink()
    assert room() is None
    assert shortage(Load(path=str(starter), context=8192)) == ""


def test_this_machine_tells() -> None:
    found = room()
    assert found is not None
    assert found.available > 0


@pytest.mark.parametrize(("kv_type", "kv"), [("f16", 2.0), ("q8_0", 34 / 32)])
def test_the_need_is_weights_cache_and_buffers(starter: Path, kv_type: str, kv: float) -> None:
    found = need(Load(path=str(starter), context=1000, kv_type=kv_type), describe(starter))
    assert (found.weights, found.kv) == (98_362_432, round(1000 * 2 * 30 * 3 * 64 * kv))  # 30 layers, 3 heads of 64
    assert 0 < found.compute < 8 * MIB


def test_a_context_is_counted_as_long_as_the_model_has_one() -> None:
    file = ModelFile(Path("m"), 1, context=100, kv_numbers=10)
    assert need(Load(path="m", context=5000), file).kv == 100 * 10 * 2


@pytest.mark.usefixtures("machine")
def test_what_fits_is_loaded(starter: Path) -> None:
    assert shortage(Load(path=str(starter))) == ""


def test_what_does_not_fit_is_refused_with_the_figures(machine: Path, starter: Path) -> None:
    (machine / "memory.max").write_text(f"{300 * MIB}\n")
    why = shortage(Load(path=str(starter)))
    for part in (
        "not enough memory for 'SmolLM2-135M-Instruct.Q4_1.gguf'",
        "weights 94",
        "KV cache for 4096 tokens 90",
        "200 MiB are available in the control group 'edged.service'",
        "a smaller `context`",
    ):
        assert part in why


def test_the_child_refuses_a_model_that_is_larger_than_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    path.write_bytes(gguf.header([("general.architecture", "llama")]))
    with path.open("r+b") as file:
        file.truncate(2**42)  # 4 TiB, none of them on the disk
    with Handle(Load(path=str(path), threads=1, digest="known")) as handle:
        _, failed = handle.next(Failed)
        _, lost = handle.next(Lost)
    assert (failed.error, lost.error) == ("out_of_memory", "out_of_memory")
    assert "not enough memory for 'huge.gguf'" in lost.reason


@pytest.mark.parametrize(("layers", "supported", "offloaded"), [(0, True, False), (20, True, True), (20, False, False)])
def test_layers_that_go_to_a_gpu_are_not_held_against_this_machines_memory(
    monkeypatch: pytest.MonkeyPatch, layers: int, supported: bool, offloaded: bool
) -> None:
    monkeypatch.setattr("llama_cpp.llama_supports_gpu_offload", lambda: supported)
    assert offloads(Load(path="m", gpu_layers=layers)) is offloaded


def test_without_a_gpu_backend_the_setting_changes_nothing_of_the_refusal(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    path.write_bytes(gguf.header([("general.architecture", "llama")]))
    with path.open("r+b") as file:
        file.truncate(2**42)
    with Handle(Load(path=str(path), threads=1, digest="known", gpu_layers=20)) as handle:
        assert handle.next(Failed)[1].error == "out_of_memory"


PLAIN: list[tuple[str, gguf.Value]] = [
    ("general.architecture", "llama"),
    ("llama.block_count", u32(4)),
    ("llama.embedding_length", u32(64)),
    ("llama.attention.head_count", u32(8)),
]


@pytest.mark.parametrize(
    ("more", "numbers"),
    [
        ([], 4 * 8 * 16),
        ([("llama.attention.head_count_kv", u32(2))], 4 * 2 * 16),
        ([("llama.attention.head_count_kv", u32(2)), ("llama.attention.key_length", u32(100))], 4 * 2 * 108),
        ([("llama.attention.head_count_kv", Numbers("u32", (2, 1, 2, 1)))], None),
        ([("llama.attention.sliding_window", u32(512))], None),
        ([("llama.attention.kv_lora_rank", u32(512))], None),
        ([("llama.ssm.state_size", u32(16))], None),
    ],
    ids=["plain", "grouped", "lengths", "by layer", "window", "compressed", "states"],
)
def test_the_header_tells_how_large_the_cache_is_where_it_is_simple(
    tmp_path: Path, more: list[tuple[str, gguf.Value]], numbers: int | None
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf.header([*PLAIN, *more]))
    assert describe(path).kv_numbers == numbers
