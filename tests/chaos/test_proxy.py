"""The proxy's faults, each seen from both ends by plain sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chaos.proxy import HOST, Proxy
from tests.nodes import wait_until

#: How long something that must come may take, and how long something that must not come is waited for, seconds.
COMES_S, STAYS_AWAY_S = 10.0, 0.3


class Ends:
    """A client, the proxy, and the server's end of every connection."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server((HOST, 0)))
        self._listener.settimeout(COMES_S)
        self.proxy = stack.enter_context(Proxy(self._listener.getsockname()[1]))

    def connect(self) -> socket.socket:
        client = self._stack.enter_context(socket.create_connection((HOST, self.proxy.port), COMES_S))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def accept(self) -> socket.socket:
        server = self._stack.enter_context(self._listener.accept()[0])
        server.settimeout(COMES_S)
        return server

    def both(self) -> tuple[socket.socket, socket.socket]:
        client = self.connect()
        return client, self.accept()


@pytest.fixture
def ends() -> Iterator[Ends]:
    with ExitStack() as stack:
        yield Ends(stack)


def exactly(one: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = one.recv(size - len(data))
        assert more, f"the connection ended after {len(data)} of {size} bytes"
        data += more
    return data


def silent(one: socket.socket) -> bool:
    """Whether nothing comes for a while, and the connection stays."""
    one.settimeout(STAYS_AWAY_S)
    try:
        one.recv(1)
    except TimeoutError:
        return True
    finally:
        one.settimeout(COMES_S)
    return False


def test_passes_everything_on_both_ways(ends: Ends) -> None:
    client, server = ends.both()
    data = bytes(range(256)) * 8000  # more than it buffers
    for source, sink in ((client, server), (server, client)):
        sender = threading.Thread(target=source.sendall, args=(data,))
        sender.start()
        assert exactly(sink, len(data)) == data
        sender.join()
    assert ends.proxy.connections == 1


def test_the_end_of_one_side_reaches_the_other_after_the_last_byte(ends: Ends) -> None:
    ends.proxy.delay(0.1)
    client, server = ends.both()
    client.sendall(b"last words")
    client.close()
    assert exactly(server, 10) == b"last words"
    assert server.recv(1) == b""
    wait_until(lambda: ends.proxy.connections == 0, "the proxy forgets the connection")


def test_a_server_that_is_not_there_is_a_reset_for_the_client(ends: Ends) -> None:
    ends._listener.close()
    with pytest.raises(ConnectionResetError):
        ends.connect().recv(1)  # whichever the reset comes first for: it may be there before connect() has returned


def test_cut_closes_both_sides_in_order(ends: Ends) -> None:
    client, server = ends.both()
    ends.proxy.cut()
    assert (client.recv(1), server.recv(1)) == (b"", b"")
    client, server = ends.both()
    client.sendall(b"again")
    assert exactly(server, 5) == b"again"


def test_reset_is_a_rst_on_both_sides(ends: Ends) -> None:
    client, server = ends.both()
    assert not ends.proxy.reset()
    for one in (client, server):
        with pytest.raises(ConnectionResetError):
            one.recv(1)


@pytest.mark.parametrize("upwards", [True, False])
def test_reset_in_the_middle_of_a_packet(ends: Ends, upwards: bool) -> None:
    client, server = ends.both()
    source, sink = (client, server) if upwards else (server, client)
    torn: list[bool] = []
    fault = threading.Thread(target=lambda: torn.append(ends.proxy.reset(mid_packet=True, within_s=COMES_S)))
    fault.start()
    wait_until(lambda: ends.proxy._tear, "the proxy lies in wait")
    source.sendall(b"0123456789")
    fault.join()
    assert torn == [True]
    assert exactly(sink, 5) == b"01234"
    for one in (client, server):
        with pytest.raises(ConnectionResetError):
            one.recv(1)


def test_where_nothing_passes_the_reset_comes_all_the_same(ends: Ends) -> None:
    client, _ = ends.both()
    assert not ends.proxy.reset(mid_packet=True, within_s=0.05)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    # and the next connection is not torn
    client, server = ends.both()
    client.sendall(b"whole")
    assert exactly(server, 5) == b"whole"


def test_freeze_holds_everything_and_loses_nothing(ends: Ends) -> None:
    client, server = ends.both()
    ends.proxy.freeze()
    client.sendall(b"up")
    server.sendall(b"down")
    assert silent(server)
    assert silent(client)
    ends.proxy.thaw()
    assert exactly(server, 2) == b"up"
    assert exactly(client, 4) == b"down"


def test_a_new_connection_waits_while_frozen(ends: Ends) -> None:
    ends.proxy.freeze()
    client = ends.connect()  # the kernel's doing
    client.sendall(b"hello")
    assert silent(client)
    assert ends.proxy.connections == 0
    ends.proxy.thaw()
    assert exactly(ends.accept(), 5) == b"hello"


def test_delay_is_latency_not_bandwidth(ends: Ends) -> None:
    client, server = ends.both()
    ends.proxy.delay(0.4)
    begun = time.monotonic()
    for letter in b"abcdefghij":
        client.sendall(bytes([letter]))
        time.sleep(0.01)  # so that they come one by one
    assert exactly(server, 10) == b"abcdefghij"
    took = time.monotonic() - begun
    # Each of the ten is late by 0.4 s, together they are not: else it were 4 s.
    assert took >= 0.4
    ends.proxy.delay(0)
    server.sendall(b"at once")
    assert exactly(client, 7) == b"at once"


def test_throttle_bounds_the_bytes_per_second(ends: Ends) -> None:
    client, server = ends.both()
    ends.proxy.throttle(20_000)
    begun = time.monotonic()
    client.sendall(b"x" * 10_000)
    assert exactly(server, 10_000) == b"x" * 10_000
    # A tenth of a second's worth may have been saved up.
    assert time.monotonic() - begun >= 0.35
    ends.proxy.throttle(1)
    client.sendall(b"y" * 100)
    assert exactly(server, 1) == b"y"
    ends.proxy.throttle(0)
    assert exactly(server, 99) == b"y" * 99


def test_half_open_tells_the_server_and_not_the_client(ends: Ends) -> None:
    client, server = ends.both()
    ends.proxy.half_open()
    assert server.recv(1) == b""
    client.sendall(b"into the void" * 100)
    assert silent(client)
    assert ends.proxy.connections == 0

    other, served = ends.both()
    other.sendall(b"new")
    assert exactly(served, 3) == b"new"
    assert ends.proxy.connections == 1


def test_refuse_turns_new_connections_away_and_leaves_the_others(ends: Ends) -> None:
    client, server = ends.both()
    ends.proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, ends.proxy.port), COMES_S)
    client.sendall(b"still here")
    assert exactly(server, 10) == b"still here"
    ends.proxy.accept()
    other, served = ends.both()
    other.sendall(b"welcome")
    assert exactly(served, 7) == b"welcome"


def test_restore_takes_everything_back(ends: Ends) -> None:
    ends.proxy.freeze()
    ends.proxy.delay(100)
    ends.proxy.throttle(1)
    ends.proxy.refuse()
    ends.proxy.restore()
    client, server = ends.both()
    client.sendall(b"x" * 1000)
    assert exactly(server, 1000) == b"x" * 1000
