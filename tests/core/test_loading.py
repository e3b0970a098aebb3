"""A model that cannot be loaded: whoever wants it is told why, and when to come back."""

from __future__ import annotations

from edged.core.events import Drain, EngineLoading, Stop
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


def test_who_was_accepted_waits_a_minute_for_a_model_that_had_been_loaded() -> None:
    world = World(parallel=1)
    world.request("r")
    world.request("waits")
    world.say(world.generated[0].uid, "par")
    world.lose("its process was ended by SIGKILL because memory ran out", outside=True)
    for retry_s in (0.4, 6.4, 25.0):
        world.lose(REASON, error=OOM, retry_in_s=retry_s)
        world.wait(retry_s)
    world.request("new")
    world.ready(parallel=1)
    for piece in ("t", " two"):
        world.say(world.generated[-1].uid, piece)
    world.finish(world.generated[-1].uid)
    world.finish(world.generated[-1].uid)

    assert (world.text("r"), world.reply("r")[-1]["metrics"]["resumed"]) == ("part two", 1)
    assert world.reply("waits")[-1]["finish_reason"] == "stop"
    assert [(m["gen"], m["error"]["code"]) for m in world.reply("new")] == [(0, "out_of_memory")]


def test_after_that_minute_they_are_told_why_with_the_text_so_far() -> None:
    world = World(parallel=1)
    world.request("r")
    world.request("waits")
    world.say(world.generated[0].uid, "par")
    world.wait(40)  # the minute begins when the model is lost
    world.lose("killed", outside=True)
    world.lose(REASON, error=OOM, retry_in_s=51.2)
    world.wait(51.2)
    assert [world.reply(path)[-1]["type"] for path in ("r", "waits")] == ["chunk", "accepted"]
    world.lose(REASON, error=OOM, retry_in_s=30)  # nobody will have tried again by then

    finals = [world.reply(path)[-1] for path in ("r", "waits")]
    assert [(final["error"]["code"], final["text"]) for final in finals] == [
        ("out_of_memory", "par"),
        ("out_of_memory", ""),
    ]
    world.ready()
    assert len(world.generated) == 1


def test_so_does_who_comes_from_an_earlier_daemon() -> None:
    world = World(parallel=1)
    world.request("r")
    world.request("waits")
    later = World(before=world, ready=False)
    later.lose(REASON, error=OOM, retry_in_s=12.8)
    later.wait(12.8)
    later.ready()
    for generated in later.generated:
        later.finish(generated.uid)

    assert [later.reply(path)[-1]["finish_reason"] for path in ("r", "waits")] == ["stop", "stop"]


def test_a_node_that_shuts_down_leaves_who_waits_for_the_model_to_the_next_daemon() -> None:
    world = World()
    world.request("r")
    world.say(world.generated[0].uid, "par")
    world.lose("killed", outside=True)
    world.lose(REASON, error=OOM, retry_in_s=12.8)
    world.tell(Drain(20))
    assert sum(isinstance(effect, Stop) for effect in world.effects) == 1
    assert (world.on("status")[-1]["state"], world.reply()[-1]["type"]) == ("offline", "chunk")
    world.ready()
    assert len(world.generated) == 1
    later = World(before=world)
    later.say(later.generated[0].uid, "tial")
    later.finish(later.generated[0].uid)

    assert later.reply()[-1]["text"] == "partial"


def test_a_deadline_passes_while_the_model_cannot_be_loaded() -> None:
    world = World()
    world.request("r", {"prompt": "x", "timeout_s": 5})
    world.lose("killed", outside=True)
    world.lose(REASON, error=OOM, retry_in_s=12.8)
    world.wait(6)

    assert world.reply()[-1]["error"]["code"] == "timeout"


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

    assert world.reply("runs")[-1]["type"] == "accepted"
    assert world.reply()[0]["error"]["code"] == "draining"
