"""Engines and brokers that die: what runs goes on, and the node serves on."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from zlib import crc32

import pytest

from edged.engine.files import resolve
from tests.brokers import Broker, LocalBroker
from tests.fixtures import StartNode, StartScripted
from tests.listener import Listener
from tests.nodes import ENDLESS, wait_until

pytestmark = pytest.mark.model


def test_kill_9_of_the_engine(broker: Broker, start_node: StartNode) -> None:
    """Every stream goes on with the next token, in the same generation."""
    node = start_node(broker)
    with Listener(broker.host, broker.port, f"{node.base}/#") as listener:
        old = node.engine_pid()
        for i in range(4):
            listener.publish(f"{node.base}/req/k{i}", {**ENDLESS, "max_tokens": 100})
        for i in range(4):
            listener.chunk(f"k{i}")
        os.kill(old, signal.SIGKILL)
        finals = [listener.final(f"k{i}") for i in range(4)]
        listener.publish(f"{node.base}/req/next", {"prompt": "Say hi.", "max_tokens": 5})
        after = listener.final("next")

    for i, final in enumerate(finals):
        messages = listener.stream(f"k{i}")
        assert [m["seq"] for m in messages] == list(range(len(messages)))
        assert {m["gen"] for m in messages} == {1}
        assert "".join(m["text"] for m in messages if m["type"] == "chunk") == final["text"]
        assert (final["finish_reason"], final["usage"]["completion_tokens"]) == ("length", 100)
        assert final["metrics"]["resumed"] == 1
    assert after["finish_reason"] in ("stop", "length")
    assert node.engine_pid() != old
    assert "SIGKILL" in node.log()


def test_streams_go_on_in_the_next_engine(broker: Broker, start_scripted: StartScripted) -> None:
    node = start_scripted(broker)
    with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener:
        listener.publish(f"{node.base}/req/on", "hello")
        [uid] = node.engine.wait_for(1)
        node.engine.say(uid, "Once ")
        node.engine.say(uid, "upon ", tokens=2)
        node.engine.die()
        node.engine.wait_for(1)
        assert node.engine.running[uid].generated == [0, 1, 2]
        node.engine.say(uid, "a time")
        node.engine.finish(uid)
        final = listener.final("on")

    assert (final["text"], final["usage"]["completion_tokens"]) == ("Once upon a time", 4)
    assert final["metrics"]["resumed"] == 1
    assert "".join(m["text"] for m in listener.stream("on") if m["type"] == "chunk") == "Once upon a time"


def test_one_of_eight_streams_that_kills_the_engines_process_ends_as_crashed_and_the_others_go_on(
    broker: Broker, start_scripted: StartScripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # the child is a module of the tests
    starts = tmp_path / "starts"
    node = start_scripted(broker, child=(sys.executable, "-m", "tests.engine.children.speaks", str(starts)))
    names = ["poison", *"abcdefg"]
    with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener:
        for name in names:
            body = {"prompt": name, "raw": True, "max_tokens": 60}
            listener.publish(f"{node.base}/req/{name}", json.dumps(body))
        finals = {name: listener.final(name) for name in names}
        texts = {name: "".join(m["text"] for m in listener.stream(name) if m["type"] == "chunk") for name in names}
    counted = [f"{n} " for n in range(60)]
    assert finals["poison"]["error"]["code"] == "crashed"
    assert texts.pop("poison") == "".join(counted[:20])
    assert texts == dict.fromkeys("abcdefg", "".join(counted))
    for name in "abcdefg":
        assert (finals[name]["finish_reason"], finals[name]["crc32"]) == ("length", crc32("".join(counted).encode()))
        assert finals[name]["metrics"]["resumed"] == 1
    assert len(starts.read_text().splitlines()) == 3, "it died twice, and no more"


def test_a_request_that_takes_the_engine_down_twice_is_not_tried_again(
    broker: Broker, start_scripted: StartScripted
) -> None:
    node = start_scripted(broker)
    with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener:
        for name in ("good", "poison", "fine"):
            listener.publish(f"{node.base}/req/{name}", name)
        good, poison, fine = node.engine.wait_for(3)
        node.engine.die()
        assert node.engine.wait_for(1) == [good]  # alone
        node.engine.finish(good)
        assert node.engine.wait_for(1) == [poison]
        node.engine.die()
        assert listener.final("poison")["error"]["code"] == "crashed"
        assert node.engine.wait_for(1) == [fine]
        node.engine.finish(fine)

        assert [listener.final(name)["finish_reason"] for name in ("good", "fine")] == ["stop", "stop"]


def test_a_model_that_cannot_be_loaded_is_told_until_it_can(broker: Broker, start_scripted: StartScripted) -> None:
    node = start_scripted(broker, engine={"ready": False})
    with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener:
        listener.publish(f"{node.base}/req/waits", "hello")
        listener.wait(lambda m: b'"accepted"' in m.payload)
        node.engine.die("it needs 812 MB, and 300 MB are free", error="out_of_memory", returns=False)
        waited = listener.final("waits")
        listener.publish(f"{node.base}/req/late", "hello")
        late = listener.final("late")
        node.engine.load()
        with Listener(broker.host, broker.port, f"{node.base}/status") as card:
            card.wait(lambda m: m.json()["state"] == "online")
        listener.publish(f"{node.base}/req/served", "hello")
        node.engine.finish(node.engine.wait_for(1)[0])
        served = listener.final("served")

    assert (waited["gen"], late["gen"]) == (1, 0)
    for final in (waited, late):
        assert final["error"]["code"] == "out_of_memory"
        assert "812 MB" in final["error"]["message"]
        assert final["error"]["retry_after_ms"] > 0
    assert served["finish_reason"] == "stop"


def test_what_is_said_at_every_attempt_to_load_a_model_is_logged_once(
    broker: Broker, start_node: StartNode, tmp_path: Path
) -> None:
    path = tmp_path / "cut.gguf"
    with resolve("starter").open("rb") as file:
        path.write_bytes(file.read(3_000_000))
    models = json.dumps([{"path": str(path), "threads": 1}])
    node = start_node(broker, ready=False, EDGED_MODELS=models, EDGED_LOG__LEVEL="debug", EDGED_LOG__FORMAT="json")

    def levels() -> list[str]:
        found = (json.loads(line) for line in node.log().splitlines(keepends=True) if line.endswith("\n"))
        return [line["level"] for line in found if "data is not within the file bounds" in line.get("text", "")]

    wait_until(lambda: len(levels()) >= 3, "several attempts")
    assert levels()[:3] == ["error", "debug", "debug"]


def test_an_answer_goes_on_when_there_is_memory_for_the_model_again(
    broker: Broker, start_scripted: StartScripted
) -> None:
    node = start_scripted(broker)
    with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener:
        listener.publish(f"{node.base}/req/on", "hello")
        [uid] = node.engine.wait_for(1)
        node.engine.say(uid, "Once ")
        node.engine.die("it needs 812 MB, and 300 MB are free", error="out_of_memory", returns=False)
        listener.publish(f"{node.base}/req/new", "hello")
        refused = listener.final("new")
        node.engine.load()
        node.engine.wait_for(1)
        node.engine.say(uid, "more")
        node.engine.finish(uid)
        final = listener.final("on")

    assert (refused["gen"], refused["error"]["code"]) == (0, "out_of_memory")
    assert (final["finish_reason"], final["text"], final["metrics"]["resumed"]) == ("stop", "Once more", 1)


def test_kill_9_of_the_broker_and_its_return(private_broker: LocalBroker, start_node: StartNode) -> None:
    node = start_node(private_broker)
    private_broker.kill()
    wait_until(lambda: "not connected" in node.log(), "the daemon notices")
    private_broker.start()
    node.wait_ready()

    with Listener(private_broker.host, private_broker.port, f"{node.base}/#") as listener:
        listener.publish(f"{node.base}/req/back", {"prompt": "Say hi.", "max_tokens": 5})
        assert listener.final("back")["text"]


def test_an_answer_that_the_broker_missed_is_delivered_when_it_returns(
    private_broker: LocalBroker, start_scripted: StartScripted
) -> None:
    """The broker lost its memory; what it had not confirmed before is published again, the rest for the first time."""
    node = start_scripted(private_broker)
    with Listener(private_broker.host, private_broker.port) as publisher:
        publisher.publish(f"{node.base}/req/away", "hello")
        [uid] = node.engine.wait_for(1)
    private_broker.kill()
    for i in range(100):
        node.engine.say(uid, f"{i} ")
    private_broker.start()
    with Listener(private_broker.host, private_broker.port, f"{node.base}/reply/#") as listener:
        node.engine.finish(uid)
        final = listener.final("away")

    assert final["text"] == "".join(f"{i} " for i in range(100))
    # Back-pressure made the chunks grow: far fewer messages than tokens.
    assert final["seq"] < 40


def test_sigterm_drains(broker: Broker, start_node: StartNode) -> None:
    """What runs may finish; what takes longer is cancelled; what waits is the next start's; the card says offline."""
    node = start_node(broker, EDGED_SERVICE__GRACE_S="1", EDGED_MODELS='[{"path":"starter","parallel":1,"threads":1}]')
    with Listener(broker.host, broker.port, f"{node.base}/#") as listener:
        listener.publish(f"{node.base}/req/runs", ENDLESS)
        listener.publish(f"{node.base}/req/waits", {**ENDLESS, "max_tokens": 3})
        listener.chunk("runs")
        code = node.terminate()
        runs = listener.final("runs")
        states = [m.json()["state"] for m in listener.received if m.topic.endswith("/status")]
        node.start()
        waits = listener.final("waits")

    assert code == 0
    assert runs["finish_reason"] == "cancelled"
    assert (waits["finish_reason"], waits["gen"], waits["metrics"]["resumed"]) == ("length", 1, 0)
    assert states[-2:] == ["draining", "offline"]


def test_a_second_sigterm_leaves_at_once_with_a_word_and_what_runs_goes_on_with_the_next_start(
    broker: Broker, start_node: StartNode
) -> None:
    node = start_node(broker, EDGED_SERVICE__GRACE_S="600")
    with Listener(broker.host, broker.port, f"{node.base}/#") as listener:
        listener.publish(f"{node.base}/req/runs", {**ENDLESS, "max_tokens": 300})
        listener.chunk("runs")
        os.kill(node.pid, signal.SIGTERM)
        listener.wait(lambda m: m.topic.endswith("/status") and m.json()["state"] == "draining")
        code = node.terminate()
        listener.wait(lambda m: m.topic.endswith("/status") and m.json()["state"] == "offline")
        node.start()
        runs = listener.final("runs")

    assert code == 0
    assert (runs["finish_reason"], runs["gen"], runs["metrics"]["resumed"]) == ("length", 1, 1)


def test_kill_9_of_the_daemon_takes_the_engine_with_it_and_publishes_the_will(
    broker: Broker, start_node: StartNode
) -> None:
    node = start_node(broker)
    engine = node.engine_pid()
    with Listener(broker.host, broker.port, f"{node.base}/status") as listener:
        boot = listener.wait(lambda m: m.json()["state"] == "online").json()["boot"]
        node.kill()
        lost = listener.wait(lambda m: m.json()["state"] == "lost").json()

    assert lost["boot"] == boot
    wait_until(lambda: not os.path.exists(f"/proc/{engine}"), "the engine ends")  # noqa: PTH110


def test_boot_rises_with_every_start(broker: Broker, start_node: StartNode) -> None:
    node = start_node(broker)
    boots = []
    for _ in range(2):
        with Listener(broker.host, broker.port, f"{node.base}/status") as listener:
            boots.append(listener.wait(lambda m: m.json()["state"] == "online").json()["boot"])
        node.terminate()
        node.start()
        node.wait_ready()
    with Listener(broker.host, broker.port, f"{node.base}/status") as listener:
        boots.append(listener.wait(lambda m: m.json()["state"] == "online").json()["boot"])

    assert boots == sorted(set(boots))
