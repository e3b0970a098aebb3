"""Who is let in, by a real broker: passwords, access rules, certificates."""

from __future__ import annotations

import re
import ssl
import subprocess
from pathlib import Path

import pytest

from edged.core.events import Published
from edged.mqtt.settings import Settings, Tls, TlsError
from tests.brokers import Broker, LocalBroker
from tests.conftest import StartBroker
from tests.mqtt.conftest import Authority
from tests.mqtt.harness import Core
from tests.mqtt.scripted import ScriptedBroker, Session

both_versions = pytest.mark.parametrize("version", [5, "3.1.1"])


@both_versions
def test_a_wrong_password_is_told_and_tried_again(start_broker: StartBroker, tmp_path: Path, version: object) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-b", passwords, "pi", "right"], check=True, capture_output=True)
    broker = start_broker(config=["allow_anonymous false", f"password_file {passwords}"])
    with Core(broker, username="pi", password="right", version=version) as core:
        core.connect()
    with Core(broker, username="pi", password="wrong", version=version) as core:
        core.pump(lambda: len(core.reasons) == 2)
        sentence = (
            f"the broker at 127.0.0.1:{broker.port} refused the connection: Not authorized (0x87); check mqtt.user"
        )
        assert core.reasons[0].startswith(sentence)
        assert "wrong" not in core.reasons[0]
        assert core.connection.alive


def test_the_password_is_not_printed() -> None:
    assert "wrong" not in repr(
        Settings(host="h", port=1, client_id="c", keepalive_s=5, username="pi", password="wrong")
    )


def test_a_publish_that_the_access_rules_forbid_is_reported_as_refused(
    start_broker: StartBroker, tmp_path: Path
) -> None:
    rules = tmp_path / "acl"
    rules.write_text("topic write open/#\n")
    rules.chmod(0o600)
    with Core(start_broker(config=["allow_anonymous true", f"acl_file {rules}"])) as core:
        core.connect()
        core.publish("secret/t", token=1)
        core.publish("open/t", token=2)
        core.pump(lambda: len(core.confirmed) == 2)
        assert [(event.token, event.reason_code >= 0x80) for event in core.of(Published)] == [(1, True), (2, False)]


@pytest.fixture
def tls_broker(start_broker: StartBroker, authority: Authority) -> LocalBroker:
    return start_broker(config=[f"certfile {authority.server}", f"keyfile {authority.server_key}"])


@both_versions
def test_tls_with_the_right_authority_connects(tls_broker: LocalBroker, authority: Authority, version: object) -> None:
    with Core(tls_broker, tls=Tls(ca_file=authority.ca), subscriptions=["req/#"], version=version) as core:
        core.connect()
        for n in range(100):
            core.publish(f"req/{n}", b"x" * 5000, token=n)
        for n in range(100):
            core.pump(lambda enough=n: len(core.arrived) > enough)  # type: ignore[misc]  # mypy wants a type
            core.acknowledge(core.arrived[n].ack)
        core.pump(lambda: len(core.confirmed) == 100)
        assert [m.topic for m in core.arrived] == [f"req/{n}" for n in range(100)]


def test_tls_packets_that_come_in_one_record_are_all_read_at_once(authority: Authority) -> None:
    """The socket has nothing to read then: the rest of the record is in OpenSSL's buffer already."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority.server, authority.server_key)

    def script(session: Session) -> None:
        session.accept()
        session.send(b"".join(session.codec.make_publish(b"req/%d" % n, b"x") for n in range(50)))
        session.serve()

    with ScriptedBroker(script, tls=tls) as broker, Core(broker, tls=Tls(ca_file=authority.ca)) as core:
        core.pump(lambda: len(core.arrived) == 50)
        assert [m.topic for m in core.arrived] == [f"req/{n}" for n in range(50)]


def test_tls_with_another_authority_is_refused_and_tried_again(tls_broker: LocalBroker, authority: Authority) -> None:
    for tls in (Tls(ca_file=authority.other_ca), Tls()):
        with Core(tls_broker, tls=tls) as core:
            core.pump(lambda: len(core.reasons) == 2)
            assert re.search(r"is not trusted: .*(self-signed|unable to get).*; check .*mqtt\.ca_file", core.reasons[0])
            assert core.connection.alive


def test_tls_under_a_name_that_the_certificate_does_not_have_is_refused(
    tls_broker: LocalBroker, authority: Authority
) -> None:
    class ByName:
        host, port = "localhost", tls_broker.port

    with Core(ByName(), tls=Tls(ca_file=authority.ca)) as core:
        core.pump(lambda: core.reasons)
        assert "Hostname mismatch" in core.reasons[0]


def test_tls_towards_a_plain_broker_is_told(broker: Broker, authority: Authority) -> None:
    with Core(broker, tls=Tls(ca_file=authority.ca), connect_timeout_s=1) as core:
        core.pump(lambda: core.reasons)
        assert re.search(r"no (TLS with|connection to) the broker at", core.reasons[0])


def test_plain_towards_a_tls_broker_is_told(tls_broker: LocalBroker) -> None:
    with Core(tls_broker) as core:
        core.pump(lambda: core.reasons)
        assert "was closed before it answered" in core.reasons[0] or "not MQTT" in core.reasons[0]


def test_a_client_certificate_is_shown_where_the_broker_asks_for_one(
    start_broker: StartBroker, authority: Authority
) -> None:
    lines = [f"cafile {authority.ca}", f"certfile {authority.server}", f"keyfile {authority.server_key}"]
    broker = start_broker(config=[*lines, "require_certificate true", "use_identity_as_username true"])
    with Core(broker, tls=Tls(ca_file=authority.ca)) as core:
        core.pump(lambda: core.reasons)
        assert not core.times_connected
    with Core(broker, tls=Tls(ca_file=authority.ca, cert_file=authority.client, key_file=authority.client_key)) as core:
        core.connect()
        assert "u'node-1'" in broker.log()


@pytest.mark.parametrize(
    ("ca", "cert", "key", "words"),
    [
        ("missing", None, None, r"authorities in '.*missing' cannot be used: No such file"),
        ("server_key", None, None, r"authorities in '.*server.key' cannot be used: "),
        (
            "ca",
            "missing",
            "client_key",
            r"certificate '.*missing' with key '.*client.key' cannot be used: No such",
        ),
        (
            "ca",
            "client",
            "server_key",
            r"certificate '.*client.pem' with key '.*server.key' .*: KEY_VALUES_MISM",
        ),
        ("ca", "client", "locked_key", r"certificate '.*client.pem' with key '.*locked.key' cannot be used: "),
    ],
)
def test_an_unusable_certificate_is_refused_at_the_start_and_named(
    authority: Authority, ca: str, cert: str | None, key: str | None, words: str
) -> None:
    class Anywhere:
        host, port = "127.0.0.1", 1

    def file(name: str | None) -> Path | None:
        return None if name is None else getattr(authority, name, authority.ca.parent / name)

    with pytest.raises(TlsError, match=words):
        Core(Anywhere(), tls=Tls(ca_file=file(ca), cert_file=file(cert), key_file=file(key)))
