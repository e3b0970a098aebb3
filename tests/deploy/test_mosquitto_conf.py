"""mosquitto.conf and deploy/acl.conf, in a real mosquitto."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edged.config import Settings
from edged.wire.topics import DEFAULT_ROOT
from tests.brokers import free_port
from tests.deploy.tools import ROOT, program

pytestmark = pytest.mark.broker
CONF = ROOT / "mosquitto.conf"
START_S = 10.0
USERS = ("alice", "bob", "edged", "operator")
TO_THE_NODE = ("req", "ask", "ctl", "session")
FROM_THE_NODE = ("reply", "result")
StartWith = Callable[[Callable[[str], str]], "Running"]


class Running:
    def __init__(self, ports: list[int], log: Path) -> None:
        self.ports = ports
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()


@contextmanager
def running(directory: Path, config: str) -> Iterator[Running]:
    """A mosquitto with this configuration, its listeners moved to free ports, its files in `directory`."""
    path, log = directory / "mosquitto.conf", directory / "mosquitto.log"
    for attempt in range(3):
        ports: list[int] = []
        path.write_text(_moved(config, ports))
        with log.open("wb") as out:
            process = subprocess.Popen(
                [program("mosquitto", "mosquitto"), "-c", str(path)], stdout=out, stderr=out, cwd=directory
            )
        try:
            if _is_up(process, log):
                yield Running(ports, log)
                return
        finally:
            process.terminate()
            process.wait(10)
        # Somebody else may have taken a port meanwhile; anything else is this configuration's fault.
        assert "Address already in use" in log.read_text(), f"attempt {attempt}:\n{log.read_text()}"
    pytest.fail("three times in a row somebody else took the port")


def _moved(config: str, ports: list[int]) -> str:
    """The configuration with its listeners on free ports, which are put into `ports`."""

    def move(match: re.Match[str]) -> str:
        ports.append(free_port())
        return f"listener {ports[-1]}{match[1]}"

    return re.sub(r"^listener \d+(.*)$", move, config, flags=re.MULTILINE)


def _is_up(process: subprocess.Popen[bytes], log: Path) -> bool:
    deadline = time.monotonic() + START_S
    while " running\n" not in log.read_text():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return True


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that anybody may use: started by root, mosquitto becomes a user of its own (tmp_path is private)."""
    with tempfile.TemporaryDirectory(prefix="edged-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def start(place: Path) -> Iterator[StartWith]:
    with ExitStack() as stack:
        yield lambda change: stack.enter_context(running(place, change(CONF.read_text())))


def carries(port: int) -> bool:
    """Whether what one tool publishes reaches another."""
    where = ["-h", "127.0.0.1", "-p", str(port), "-q", "1", "-t", "edged/v1/n/status"]
    pub, sub = (program(name, "mosquitto-clients") for name in ("mosquitto_pub", "mosquitto_sub"))
    subprocess.run([pub, *where, "-r", "-m", "hello"], check=True, capture_output=True, timeout=10)
    heard = subprocess.run([sub, *where, "-C", "1", "-W", "10"], check=True, capture_output=True, timeout=20)
    return heard.stdout == b"hello\n"


class User:
    """A connected client that hears whatever it is allowed to."""

    def __init__(self, name: str, port: int) -> None:
        self.heard: set[str] = set()
        self._ready, self._last = Event(), Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.username_pw_set(name, f"{name}-password")
        self._client.on_message = self._hear
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe(f"{DEFAULT_ROOT}/#", qos=1)
        assert self._ready.wait(10), f"{name} has no subscription"

    def say(self, topic: str) -> None:
        """Publish, and wait until the broker has taken it or thrown it away."""
        self._client.publish(f"{DEFAULT_ROOT}/{topic}", "", qos=1).wait_for_publish(10)

    def wait(self) -> set[str]:
        """All that was heard, once the status card has come."""
        assert self._last.wait(10)
        return self.heard

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._client._reset_sockets()  # paho leaves its wake-up pair to the garbage collector, which warns

    def _hear(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        topic = message.topic.removeprefix(f"{DEFAULT_ROOT}/")
        if topic == "n/status":
            self._last.set()
        else:
            self.heard.add(topic)


def uncommented(text: str, first: str) -> str:
    """The configuration with one block of commented settings taken in, from the line `first` to the blank one."""
    head, found, rest = text.partition(f"\n#{first}\n")
    assert found, f"no commented line {first!r}"
    block, _, tail = rest.partition("\n\n")
    return f"{head}\n{first}\n{re.sub('^#', '', block, flags=re.MULTILINE)}\n\n{tail}"


def test_it_loads_as_it_stands_and_carries_messages(start: StartWith) -> None:
    broker = start(lambda text: text)
    assert "Error" not in broker.log
    assert carries(broker.ports[0])


def test_it_can_be_reached_from_this_machine_only() -> None:
    listeners = re.findall(r"^listener .*$", CONF.read_text(), re.MULTILINE)
    assert listeners == ["listener 1883 127.0.0.1"]


def test_it_works_as_a_drop_in_of_debians_own_configuration(place: Path) -> None:
    """Debian's main file sets persistence and its place, then includes conf.d: nothing may clash with that."""
    (place / "conf.d").mkdir()
    port = free_port()
    text = CONF.read_text().replace("\nlistener 1883 ", f"\nlistener {port} ")
    (place / "conf.d" / "edged.conf").write_text(text)
    main = f"persistence true\npersistence_location {place}/\ninclude_dir {place}/conf.d\n"
    with running(place, main) as broker:
        assert "Error" not in broker.log
        assert carries(port)


def test_a_request_that_edged_refuses_politely_gets_through_to_it() -> None:
    """The broker's limit is above edged's: whoever asks too much is told so, instead of hearing nothing."""
    limit = re.search(r"^message_size_limit (\d+)$", CONF.read_text(), re.MULTILINE)
    assert limit is not None
    assert int(limit[1]) >= 2 * Settings().limits.max_payload


def test_on_the_network_each_user_reaches_only_its_own_requests_and_replies(place: Path, start: StartWith) -> None:
    passwords = place / "passwd"
    passwords.touch()
    for name in USERS:
        command = [program("mosquitto_passwd", "mosquitto"), "-b", str(passwords), name, f"{name}-password"]
        subprocess.run(command, check=True, capture_output=True, timeout=10)
    acl = place / "acl"
    acl.write_text((ROOT / "deploy" / "acl.conf").read_text())
    for file in (passwords, acl):
        file.chmod(0o644)

    def open_to_the_network(text: str) -> str:
        text = uncommented(text, "listener 8883 0.0.0.0").replace("listener 8883 0.0.0.0", "listener 8883 127.0.0.1")
        text = text.replace("/etc/mosquitto/edged.passwd", str(passwords)).replace("/etc/mosquitto/edged.acl", str(acl))
        return re.sub("^(cafile|certfile|keyfile) .*\n", "", text, flags=re.MULTILINE)

    broker = start(open_to_the_network)
    with ExitStack() as stack:
        alice, bob, edged, operator = (User(name, broker.ports[1]) for name in USERS)
        for user in (alice, bob, edged, operator):
            stack.callback(user.close)
        for kind in (*TO_THE_NODE, *FROM_THE_NODE, "status", "metrics", "events"):
            alice.say(f"n/{kind}/alice/from-alice")
            alice.say(f"n/{kind}/bob/from-alice")
            alice.say(f"n/{kind}/from-alice")
            edged.say(f"n/{kind}/alice/from-edged")
        alice.say("n/metrics")
        edged.say("n/events")
        edged.say("n/status")  # what all may read, and the last: by now everybody has heard what was for him
        asked = {f"n/{kind}/alice/from-alice" for kind in TO_THE_NODE}
        answered = {f"n/{kind}/alice/from-edged" for kind in FROM_THE_NODE}
        assert alice.wait() == answered
        assert bob.wait() == set()
        assert edged.wait() == asked
        assert operator.wait() == asked | answered | {"n/events"}

    local, network = broker.ports
    assert carries(local), "this machine keeps its listener without passwords"
    with pytest.raises(subprocess.CalledProcessError):
        carries(network)


def test_the_websockets_listener_serves_pages_as_well(place: Path, start: StartWith) -> None:
    pages = place / "www"
    pages.mkdir()
    (pages / "index.html").write_text("a page")

    def open_to_browsers(text: str) -> str:
        return uncommented(text, "listener 9001 127.0.0.1").replace("/usr/share/edged/www", str(pages))

    broker = start(open_to_browsers)
    with urllib.request.urlopen(f"http://127.0.0.1:{broker.ports[1]}/index.html", timeout=10) as response:
        assert response.read() == b"a page"
