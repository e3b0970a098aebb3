"""Who is let in, who comes next, who has to go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edged.core.events import EngineStep, Finished, MessageArrived, Published, Tick
from edged.core.settings import ModelSettings
from tests.core.world import DEFAULTS, World


def test_the_ack_comes_with_the_answer_in_order_of_arrival() -> None:
    world = World()
    acks = [world.request("a"), world.request("b", "{"), world.request("c", "x", retain=True), world.request("d")]

    assert world.acked == acks


def test_queue_positions_and_order_of_arrival() -> None:
    world = World(parallel=1)
    for name in "abcd":
        world.request(name, name)

    assert [world.reply(name)[0]["queue_position"] for name in "abcd"] == [0, 1, 2, 3]
    for _ in range(4):
        world.finish(world.generated[-1].uid)
    assert [e.messages[-1][1] for e in world.generated if e.messages] == list("abcd")


def test_priorities_come_first() -> None:
    world = World(parallel=1)
    world.request("runs", "runs")
    for priority in ("low", "normal", "high"):
        world.request(priority, {"prompt": priority, "priority": priority})
    for _ in range(4):
        world.finish(world.generated[-1].uid)

    assert [e.messages[-1][1] for e in world.generated if e.messages] == ["runs", "high", "normal", "low"]


def test_clients_share_fairly() -> None:
    world = World(parallel=2)
    for i in range(5):
        world.request(f"greedy/g{i}", "greedy")
    world.request("modest/m0", "modest")
    world.request("modest/m1", "modest")
    order = []
    for _ in range(7):
        first = next(e for e in world.generated if e.uid not in order)
        order.append(first.uid)
        world.finish(first.uid)
    names = [e.messages[-1][1] for e in world.generated if e.messages]

    assert names[:2] == ["greedy", "greedy"]
    assert names[2:5].count("modest") == 2


def test_overloaded_when_the_queue_is_full_says_when_to_come_back() -> None:
    world = World(parallel=1, max_queue=2, max_queue_per_client=2)
    for name in "abc":
        world.request(name)
    world.request("d")

    [final] = world.reply("d")
    assert (final["gen"], final["error"]["code"], final["error"]["status"]) == (0, "overloaded", 429)
    assert final["error"]["retry_after_ms"] > 0
    world.finish(world.generated[0].uid)
    world.request("e")
    assert world.reply("e")[0]["type"] == "accepted"


def test_a_refusal_that_nobody_can_be_waiting_for_is_told_on_events() -> None:
    world = World(parallel=1, max_queue=1)
    world.request("a")
    world.request("b")
    for payload, code in (({"prompt": "x"}, "overloaded"), ({"prompt": "x", "model": "none"}, "unknown_model")):
        world.request("", payload)
        assert world.on("events")[-1]["error"]["code"] == code
    before = len(world.on("events"))
    world.request("", {"prompt": "x"}, response_topic="reply/heard")
    world.request("", {"prompt": "x", "id": "known"})

    assert len(world.on("events")) == before


def test_the_share_of_a_client() -> None:
    world = World(parallel=1, max_queue=4, max_queue_per_client=1)
    for path in ("x/a", "x/b", "x/c", "y/d"):
        world.request(path)

    assert world.reply("x/c")[0]["error"]["code"] == "overloaded"
    assert world.reply("y/d")[0]["type"] == "accepted"


def test_same_id_with_another_body_is_a_conflict_and_leaves_the_stream_alone() -> None:
    world = World()
    world.request("r", "one")
    world.request("r", "two")
    world.finish(world.generated[0].uid)

    accepted, conflict, final = world.reply()
    assert (conflict["gen"], conflict["error"]["code"]) == (0, "id_conflict")
    assert (accepted["seq"], final["seq"], final["finish_reason"]) == (0, 1, "stop")
    assert world.on("events")[0]["error"]["code"] == "id_conflict"
    assert len(world.generated) == 1


def test_same_id_with_the_same_body_starts_nothing() -> None:
    world = World()
    ack = world.request("r", "one")
    again = world.request("r", "one")

    assert len(world.generated) == 1
    accepted, copy = world.reply()
    assert accepted == copy
    assert world.acked == [ack, again]


def test_the_same_id_of_two_clients_is_two_requests() -> None:
    world = World()
    world.request("x/r", "one")
    world.request("y/r", "two")

    assert len(world.generated) == 2


def test_cancel_while_it_waits_runs_and_afterwards() -> None:
    world = World(parallel=1)
    world.request("runs")
    world.request("waits")
    world.ctl("waits")
    assert world.reply("waits")[-1]["finish_reason"] == "cancelled"
    world.say(world.generated[0].uid, "part")
    world.ctl("runs", '{"op":"cancel"}')
    world.ctl("runs")
    assert world.cancelled == [world.generated[0].uid]
    world.finish(world.generated[0].uid, "cancelled")
    final = world.reply("runs")[-1]
    assert (final["finish_reason"], final["text"]) == ("cancelled", "part")
    count = len(world.published)
    world.ctl("runs")
    world.ctl("waits")
    assert len(world.published) == count
    assert len(world.generated) == 1


def test_cancel_of_a_stranger() -> None:
    world = World()
    world.ctl("x/nobody")
    assert not world.reply("x/nobody"), "its request may be on the way"
    world.wait(2)

    [final] = world.reply("x/nobody")
    assert (final["gen"], final["error"]["code"], final["error"]["status"]) == (0, "unknown_request", 404)


@pytest.mark.parametrize(
    "payload", ["stop", '{"op":"pause","gen":1}', '{"op":"replay","from_seq":-1}', '{"op":"cancel","x":1}', ""]
)
def test_other_words_on_ctl_are_refused(payload: str) -> None:
    world = World()
    world.request("r")
    world.ctl("r", payload)

    assert world.reply()[-1]["error"]["code"] == "bad_request"
    assert not world.cancelled


def test_sessions_are_refused_for_now() -> None:
    world = World()
    world.request("r", "reset", kind="session")

    assert world.reply()[0]["error"]["code"] == "bad_request"


@pytest.mark.parametrize(("timeout_s", "expiry_s", "expected"), [(5, None, 5), (None, 7.0, 7), (500, None, 100)])
def test_the_deadline_is_the_least_of_three(timeout_s: float | None, expiry_s: float | None, expected: float) -> None:
    world = World(parallel=1)
    world.request("runs")
    world.request("r", {"prompt": "a"} | ({"timeout_s": timeout_s} if timeout_s else {}), expiry_s=expiry_s)
    world.wait(expected - 0.1)
    assert world.reply()[-1]["type"] == "accepted"
    world.wait(0.2)

    final = world.reply()[-1]
    assert (final["error"]["code"], final["error"]["status"], final["error"]["retryable"]) == ("timeout", 408, True)
    assert len(world.generated) == 1


def test_the_deadline_of_a_running_request_keeps_the_partial_text() -> None:
    world = World()
    world.request("r", {"prompt": "a", "timeout_s": 5})
    uid = world.generated[0].uid
    world.say(uid, "part")
    world.wait(6)
    assert world.cancelled == [uid]
    world.finish(uid, "cancelled")

    final = world.reply()[-1]
    assert (final["finish_reason"], final["error"]["code"], final["text"]) == ("error", "timeout", "part")


def test_an_answer_that_was_complete_before_the_cancel_arrived_counts() -> None:
    world = World()
    world.request("r")
    uid = world.generated[0].uid
    world.ctl("r")
    world.tell(EngineStep("m", finished=(Finished(uid, "stop"),)))

    assert world.reply()[-1]["finish_reason"] == "stop"


def test_models_by_alias() -> None:
    world = World(models=(ModelSettings("m", DEFAULTS), ModelSettings("other", DEFAULTS)), parallel=1)
    world.request("a", {"prompt": "a", "model": "other"})
    world.request("b", {"prompt": "b"})
    world.request("c", {"prompt": "c", "model": "none"})

    assert [(e.model, e.uid) for e in world.generated] == [("other", 1), ("m", 2)]
    assert world.reply("c")[0]["error"]["code"] == "unknown_model"


def test_the_engine_hears_whose_request_it_is_and_how_exact_the_answer_has_to_be() -> None:
    world = World(parallel=4)
    world.request("ann/a", {"prompt": "a", "seed": 5})
    world.request("b", {"prompt": "b"})

    assert [(e.owner, e.exact) for e in world.generated] == [("ann", True), (None, False)]


@pytest.mark.parametrize(
    ("request_", "shared"),
    [
        ({"prompt": "a"}, 1),
        ({"messages": [{"role": "user", "content": "a"}]}, 1),
        ({"prompt": "a", "system": "Be brief."}, 0),
        ({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]}, 0),
        ({"prompt": "a", "raw": True}, 0),
    ],
)
def test_only_the_operators_own_system_prompt_is_everybodys(request_: dict[str, Any], shared: int) -> None:
    world = World(models=(ModelSettings("m", replace(DEFAULTS, system="Be brief.")),))
    world.request("a", request_)

    assert world.generated[0].shared == shared


def test_without_a_system_prompt_of_the_operators_nothing_is_shared() -> None:
    world = World()
    world.request("a")

    assert world.generated[0].shared == 0


def test_one_models_full_queue_position_does_not_hold_another() -> None:
    world = World(models=(ModelSettings("m", DEFAULTS), ModelSettings("other", DEFAULTS)), parallel=1)
    world.request("a")
    world.request("b")
    world.request("c", {"prompt": "c", "model": "other"})

    assert [e.model for e in world.generated] == ["m", "other"]


def test_status_tells_the_load_and_not_too_often() -> None:
    world = World(parallel=1)
    world.wait(2)
    before = len(world.on("status"))
    for i in range(5):
        world.request(f"r{i}")
    world.wait(0.5)
    assert len(world.on("status")) == before + 1  # online → busy at once
    world.wait(2)

    last = world.on("status")[-1]
    assert (last["state"], last["queue"]) == ("busy", {"running": 1, "waiting": 4, "capacity": 10})
    assert last["protocol"] == 1
    assert all(p.retain for p in world.published if p.topic.endswith("/status"))
    quiet = len(world.on("status"))
    world.wait(60)
    assert len(world.on("status")) == quiet


def test_the_will_has_the_boot_of_the_card() -> None:
    world = World()
    will = world.core.will(world.now)

    assert will.retain
    assert b'"state":"lost"' in will.payload
    assert b'"boot":7' in will.payload


def test_metrics_come_periodically_with_counters() -> None:
    world = World(metrics_s=60.0)
    world.request("a")
    world.request("b", "{")
    world.say(world.generated[0].uid, "x")
    world.finish(world.generated[0].uid, prompt_tokens=3)
    world.wait(61)

    [figures] = world.on("metrics")
    assert figures["accepted"] == 1
    assert figures["finished"] == {"stop": 1}
    assert figures["refused"] == {"bad_request": 1}
    assert (figures["prompt_tokens"], figures["completion_tokens"]) == (3, 1)


def test_an_idle_core_wants_no_wakeups() -> None:
    world = World()
    world.wait(5)

    assert world.core.wake_at() is None
    world.tell(Tick())
    assert world.core.wake_at() is None


def test_refusals_that_the_broker_does_not_take_hold_back_the_acks_and_stay_bounded() -> None:
    world = World()
    world.confirms = False
    for i in range(400):
        world.request(f"r{i}", "{")
    for i in range(400):
        world.request(f"q{i}", "{", qos=0)
    refusals = [p for p in world.published if b'"final"' in p.payload]

    assert len(world.acked) < 400
    assert len(refusals) <= 400
    world.confirms = True
    pending = [p for p in world.published if p.token is not None]
    for published in pending:
        world.tell(Published(published.token))
    assert world.acked == list(range(800))


def test_nothing_of_an_ended_request_is_kept() -> None:
    """Deadlines lie in a heap until they pass; ended requests must not wait there for hours."""
    world = World()
    for i in range(2000):
        world.request(f"r{i}")
        world.finish(world.generated[-1].uid)
        world.effects = [e for e in world.effects if e in world.generated[-1:]]

    parts = world.core._parts
    assert len(parts.deadlines) < 300
    assert not any((parts.streams, parts.ending, parts.courier._deliveries, parts.courier._rows))


def test_a_message_on_a_topic_of_an_earlier_configuration_is_acknowledged_and_reported() -> None:
    world = World()
    world.tell(MessageArrived("other/v1/n/req/r", b"x", ack="a"))
    assert world.acked == ["a"]
    assert world.logged("message on a topic of nobody's ignored")
    assert not world.generated
