"""A model that cannot be loaded: whoever wants it is told why, and when to come back."""

from __future__ import annotations

from edged.core.events import Drain, EngineLoading
from edged.core.settings import ModelSettings
from edged.wire.errors import ErrorCode
from tests.core.world import DEFAULTS, World

REASON = "it needs 812 MB, and 300 MB are free"
OOM = ErrorCode.OUT_OF_MEMORY


def test_who_waits_for_a_model_that_cannot_be_loaded_is_told_why() -> None:
    world = World(ready=False)
    world.request("r")
    world.request("ask", kind="ask")
    world.lose(REASON, error=OOM, retry_in_s=12.8)

    for path in ("r", "ask"):
        final = world.reply(path)[-1]
        assert (final["gen"], final["finish_reason"]) == (1, "error")
        error = final["error"]
        assert (error["code"], error["status"], error["retryable"]) == ("out_of_memory", 503, True)
        assert error["retry_after_ms"] == 12_800
        assert REASON in error["message"]
        assert "'m'" in error["message"]
    assert world.on("status")[-1]["state"] == "loading"


def test_who_comes_later_is_refused_with_the_time_that_is_left() -> None:
    world = World(ready=False)
    world.lose("no such file", error=ErrorCode.UNAVAILABLE, retry_in_s=10)
    world.wait(4)
    world.request("r")
    world.wait(8)
    world.request("late")

    [refusal] = world.reply("r")
    assert (refusal["gen"], refusal["error"]["code"], refusal["error"]["retry_after_ms"]) == (0, "unavailable", 6000)
    assert "no such file" in refusal["error"]["message"]
    assert world.reply("late")[0]["error"]["retry_after_ms"] == 1000  # any moment now, but it takes time to load


def test_requests_wait_again_as_soon_as_the_next_attempt_gets_somewhere() -> None:
    world = World(ready=False)
    world.lose(REASON, error=OOM)
    world.tell(EngineLoading("m", 0.3))
    world.request("r")
    assert [m["type"] for m in world.reply()] == ["accepted"]
    world.ready()
    world.finish(world.generated[0].uid)

    assert world.reply()[-1]["finish_reason"] == "stop"


def test_a_model_that_is_there_takes_requests_again_even_if_nobody_saw_it_load() -> None:
    world = World(ready=False)
    world.lose(REASON, error=OOM)
    world.ready()
    world.request("r")

    assert len(world.generated) == 1


def test_who_had_begun_keeps_the_text_when_the_model_cannot_be_loaded_again() -> None:
    world = World()
    world.request("r")
    world.say(world.generated[0].uid, "par")
    world.lose("killed", outside=True)
    world.lose(REASON, error=OOM)

    final = world.reply()[-1]
    assert (final["error"]["code"], final["text"]) == ("out_of_memory", "par")
    world.ready()
    assert len(world.generated) == 1


def test_a_child_that_dies_without_a_word_while_it_loads_leaves_requests_waiting() -> None:
    world = World(ready=False)
    world.request("r")
    for _ in range(3):
        world.lose("its process was ended by SIGKILL")
    world.request("late")
    assert [m["type"] for m in world.reply() + world.reply("late")] == ["accepted", "accepted"]
    world.ready()

    assert len(world.generated) == 2


def test_other_models_are_not_touched() -> None:
    world = World(ready=False, models=(ModelSettings("m", DEFAULTS), ModelSettings("other", DEFAULTS)))
    world.request("r", {"prompt": "a", "model": "other"})
    world.lose(REASON, error=OOM)
    world.request("s", {"prompt": "a", "model": "other"})
    world.ready("other")

    assert len(world.generated) == 2


def test_the_same_reason_is_logged_once_until_it_changes() -> None:
    world = World(ready=False)
    for _ in range(5):
        world.lose(REASON, error=OOM)
        world.tell(EngineLoading("m", 0.0))
    world.lose("no such file", error=ErrorCode.UNAVAILABLE)
    world.lose("no such file", error=ErrorCode.UNAVAILABLE)
    assert [line["reason"] for line in world.logged("engine lost")] == [REASON, "no such file"]
    world.ready()
    world.lose("no such file", error=ErrorCode.UNAVAILABLE)
    world.lose("killed")
    world.lose("killed")

    reasons = [line["reason"] for line in world.logged("engine lost")]
    assert reasons == [REASON, "no such file", "no such file", "killed", "killed"]


def test_a_node_that_shuts_down_says_so_first() -> None:
    world = World()
    world.request("runs")
    world.tell(Drain(20))
    world.lose(REASON, error=OOM)
    world.request("r")

    assert world.reply("runs")[-1]["error"]["code"] == "out_of_memory"
    assert world.reply()[0]["error"]["code"] == "draining"
