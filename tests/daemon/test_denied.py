"""A reply topic that the broker's access rules do not allow."""

from __future__ import annotations

from pathlib import Path

from tests.brokers import local_broker
from tests.fixtures import StartScripted
from tests.listener import Listener
from tests.nodes import wait_until


def test_a_request_whose_reply_is_denied_is_ended_and_others_are_not(
    tmp_path: Path, start_scripted: StartScripted
) -> None:
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite #\ntopic deny edged/v1/denier/reply/denied\n")
    rules.chmod(0o644)
    tmp_path.chmod(0o755)
    with local_broker(tmp_path, config=[f"acl_file {rules}"]) as broker:
        node = start_scripted(broker, name="denier")
        with Listener(broker.host, broker.port, f"{node.base}/reply/#") as listener:
            listener.publish(f"{node.base}/req/denied", "hello")
            listener.publish(f"{node.base}/req/fine", "hello")
            denied, fine = node.engine.wait_for(2)
            wait_until(lambda: denied in node.engine.cancelled, "the denied one is cancelled")
            node.engine.say(fine, "all is well")
            node.engine.finish(fine)
            assert listener.final("fine")["text"] == "all is well"
            assert listener.stream("denied") == []
        wait_until(lambda: node.daemon._connection.backlog == 0, "nothing is sent again and again")
        node.stop()
