"""The way to the broker: refusals, losses, and coming back."""

from __future__ import annotations

import gc
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from edged.client import (
    Client,
    ErrorCode,
    InvalidRequest,
    NodeUnavailable,
    NotConnected,
    PublishRefused,
)
from tests import brokers
from tests.client.puppet import PATIENCE_S, Options, PuppetNode, until
from tests.conftest import StartBroker


def reach(broker: brokers.Broker, **more: Any) -> Options:
    return {"host": broker.host, "port": broker.port, "node": "kitchen", "topic_root": "test", **more}


@contextmanager
def serving(broker: brokers.Broker) -> Iterator[PuppetNode]:
    """A node that answers `Hi`, or what it was asked for."""
    with PuppetNode(broker, "test") as puppet:
        puppet.show("online")
        puppet.on_request = lambda asked: asked.answer("Hi")
        yield puppet


def test_any_number_of_streams_takes_one_connection_and_no_more_subscriptions(
    private_broker: brokers.LocalBroker,
) -> None:
    with serving(private_broker), Client(**reach(private_broker)) as client:
        streams = [client.stream("Hello?") for _ in range(5)]
        assert [stream.text_so_far + "".join(piece.text for piece in stream) for stream in streams] == ["Hi"] * 5
        assert client.ask("Hello?").text == "Hi"
    log = (private_broker._directory / "mosquitto.log").read_text()
    assert log.count(" as edged-") == 1
    assert log.count("Received SUBSCRIBE from edged-") == 2  # the status card, and the replies


def test_mqtt_3_1_1_serves_as_well(private_broker: brokers.LocalBroker) -> None:
    with serving(private_broker), Client(**reach(private_broker, version="3.1.1")) as client:
        assert client.ask("Hello?").text == "Hi"
        stream = client.stream("Hello?")
        assert [piece.text for piece in stream] == ["Hi"]
    log = (private_broker._directory / "mosquitto.log").read_text()
    assert " as edged-" in log
    assert "(p2, c1, k30)" in log.split(" as edged-")[1]


def test_in_mqtt_3_1_1_a_node_that_nobody_saw_is_given_up_in_time(private_broker: brokers.LocalBroker) -> None:
    with Client(**reach(private_broker, version="3.1.1", accept_timeout=0.1)) as client:
        with pytest.raises(NodeUnavailable, match="no status card and no answer"):
            client.ask("Hello?")
        with pytest.raises(NodeUnavailable, match="no `accepted`"):
            list(client.stream("Hello?"))


def test_a_killed_broker_ends_what_waits_and_the_next_request_connects_again(
    private_broker: brokers.LocalBroker,
) -> None:
    with Client(**reach(private_broker)) as client, PuppetNode(private_broker, "test") as puppet:
        stream = client.stream("Hello?")
        asked = puppet.asked()
        asked.accept()
        asked.say("one")
        assert next(stream).text == "one"
        private_broker.kill()
        with pytest.raises(NotConnected, match="the connection was lost") as caught:
            next(stream)
        assert caught.value.broker == f"127.0.0.1:{private_broker.port}"
        with pytest.raises(NotConnected, match="refused"):
            client.stream("Hello?")
        private_broker.start()
        with serving(private_broker):
            assert client.ask("Hello?").text == "Hi"


def test_a_broker_that_falls_silent_counts_as_gone(private_broker: brokers.LocalBroker) -> None:
    with Client(**reach(private_broker, keepalive=1)) as client, PuppetNode(private_broker, "test") as puppet:
        stream = client.stream("Hello?")
        puppet.asked().accept()
        private_broker.pause()
        with pytest.raises(NotConnected, match="the connection was lost"):
            list(stream)
        private_broker.resume()


def test_a_broker_that_does_not_answer_is_given_up(private_broker: brokers.LocalBroker) -> None:
    private_broker.pause()
    with (
        Client(**reach(private_broker, connect_timeout=0.2)) as client,
        pytest.raises(NotConnected, match=r"the broker did not answer within 0\.2 s"),
    ):
        client.connect()
    private_broker.resume()


def test_a_port_where_nobody_listens_is_said() -> None:
    with (
        Client(port=brokers.free_port(), host="127.0.0.1", node="kitchen") as client,
        pytest.raises(NotConnected, match=r"127\.0\.0\.1:\d+: Connection refused"),
    ):
        client.ask("Hello?")


def test_a_host_that_does_not_exist_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> socket.socket:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", fail)
    client = Client(host="no-such-host.invalid", node="kitchen")
    with client, pytest.raises(NotConnected, match=r"no-such-host\.invalid:1883: Name or service not known"):
        client.ask("Hello?")


def test_a_name_server_that_hangs_is_not_waited_for(
    private_broker: brokers.LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    connect = socket.create_connection

    def hang(*args: Any, **kwargs: Any) -> socket.socket:
        answered.wait(PATIENCE_S)
        return connect(*args, **kwargs)

    with Client(**reach(private_broker, connect_timeout=1)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "create_connection", hang)
            with pytest.raises(NotConnected, match="no connection within connect_timeout"):
                client.connect()
        assert client.connect() == "kitchen"  # a new attempt, while the first still hangs
        answered.set()
    until(lambda: all(thread.name != "edged-client" for thread in threading.enumerate()), "the threads' end")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x03\x00\x00\xff", b"\xff" * 64, b""])
def test_a_server_that_is_no_broker_ends_in_a_sentence(answer: bytes) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(1024)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with (
            Client(host="127.0.0.1", port=server.getsockname()[1], node="kitchen", connect_timeout=2) as client,
            pytest.raises(NotConnected) as caught,
        ):
            client.connect()
        thread.join()
    assert caught.value.reason


def test_a_wrong_password_is_said(start_broker: StartBroker, tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "ann", "right"], check=True, capture_output=True)
    passwords.chmod(0o644)
    broker = start_broker(config=[f"password_file {passwords}", "allow_anonymous false"])
    with (
        Client(**reach(broker, username="ann", password="wrong")) as client,
        pytest.raises(NotConnected, match="the broker refused the connection: Not authorized"),
    ):
        client.connect()
    with (
        Client(**reach(broker, username="ann", password="wrong", version="3.1.1")) as client,
        pytest.raises(NotConnected, match="the broker refused the connection: Not authorized"),
    ):
        client.connect()
    with Client(**reach(broker, username="ann", password="right")) as client:
        assert client.connect() == "kitchen"


def test_a_request_that_the_broker_forbids_is_said(start_broker: StartBroker, tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read test/#\ntopic write test/+/ctl/#\ntopic write test/allowed/req/#\n")
    broker = start_broker(config=[f"acl_file {acl}"])
    with Client(**reach(broker)) as client:
        with pytest.raises(PublishRefused, match=r"on test/kitchen/req/.*Not authorized \(0x87\)"):
            list(client.stream("Hello?"))
        with pytest.raises(PublishRefused) as caught:
            client.ask("Hello?")
    assert caught.value.code == 0x87


def test_a_request_too_large_for_the_broker_leaves_the_others_alone(start_broker: StartBroker) -> None:
    broker = start_broker(config=["max_packet_size 2000"])
    with serving(broker) as puppet, Client(**reach(broker)) as client:
        puppet.on_request = None
        stream = client.stream("Hello?")
        asked = puppet.asked()
        with pytest.raises(InvalidRequest, match="takes packets of up to 2000") as caught:
            client.ask("x" * 3000)
        assert caught.value.code is ErrorCode.TOO_LARGE
        asked.answer("Hi")
        assert [piece.text for piece in stream] == ["Hi"]


def test_tls_is_verified(start_broker: StartBroker, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    key.chmod(0o644)
    broker = start_broker(config=[f"certfile {certificate}", f"keyfile {key}"])
    context = ssl.create_default_context(cafile=str(certificate))
    with Client(**reach(broker, tls=context)) as client:
        assert client.connect() == "kitchen"
        with pytest.raises(NodeUnavailable, match="nobody is subscribed"):
            client.ask("x" * 100_000)  # several TLS records
    with Client(**reach(broker, tls=True)) as client, pytest.raises(NotConnected, match="certificate verify failed"):
        client.connect()


def test_closing_ends_the_thread(private_broker: brokers.LocalBroker) -> None:
    before = set(threading.enumerate())
    client = Client(**reach(private_broker))
    assert set(threading.enumerate()) == before  # nothing is opened before it is needed
    client.connect()
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["edged-client"]
    client.close()
    client.close()
    assert set(threading.enumerate()) == before


def test_a_forgotten_client_disconnects(private_broker: brokers.LocalBroker) -> None:
    before = set(threading.enumerate())
    client = Client(**reach(private_broker))
    client.connect()
    del client
    gc.collect()
    until(lambda: set(threading.enumerate()) == before, "the thread's end")


def test_closing_does_not_hang_on_a_broker_that_does(private_broker: brokers.LocalBroker) -> None:
    with PuppetNode(private_broker, "test") as puppet:
        client = Client(**reach(private_broker))
        client.stream("Hello?")
        puppet.asked()
        private_broker.pause()
        client.close()
        assert all(thread.name != "edged-client" for thread in threading.enumerate())
        private_broker.resume()


def test_many_threads_open_one_connection(private_broker: brokers.LocalBroker) -> None:
    with serving(private_broker), Client(**reach(private_broker)) as client:
        start = threading.Barrier(8)
        texts = []

        def ask() -> None:
            start.wait(PATIENCE_S)
            texts.append(client.ask("Hello?").text)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert texts == ["Hi"] * 8
    assert (private_broker._directory / "mosquitto.log").read_text().count(" as edged-") == 1
