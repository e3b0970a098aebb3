"""What can go wrong, by kind. A fault is a generator: it yields how long to wait, seconds, and mends what it broke."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from random import Random
from typing import TypeAlias

from tests.chaos.stage import KEEPALIVE_S, Stage

Fault: TypeAlias = Generator[float, None, None]
#: Connections of a daemon that serves: one for requests and answers, one for `ctl`.
_CONNECTIONS = 2
#: How often a condition is looked at, and until when it must hold, seconds.
_POLL_S, _PATIENCE_S = 0.02, 60.0


def until(condition: Callable[[], object], what: str) -> Fault:
    """Wait for a condition.

    Raises:
        AssertionError: it did not hold in time.
    """
    for _ in range(round(_PATIENCE_S / _POLL_S)):
        if condition():
            return
        yield _POLL_S
    raise AssertionError(f"not within {_PATIENCE_S:.0f} s: {what}")


def _connected(stage: Stage) -> Fault:
    yield from until(lambda: stage.proxy.connections >= _CONNECTIONS, "the daemon is connected to the broker")


def cut(stage: Stage, _random: Random) -> Fault:
    """Both sides of every connection are closed."""
    yield from _connected(stage)
    stage.proxy.cut()


def reset(stage: Stage, _random: Random) -> Fault:
    """RST on both sides."""
    yield from _connected(stage)
    stage.proxy.reset()


def torn(stage: Stage, _random: Random) -> Fault:
    """RST in the middle of a packet."""
    yield from _connected(stage)
    stage.proxy.reset(mid_packet=True)


def freeze(stage: Stage, random: Random) -> Fault:
    """Nothing passes for a while, which one in three times is longer than the keepalive endures."""
    yield from _connected(stage)
    stage.proxy.freeze()
    try:
        yield 2.0 * KEEPALIVE_S if random.random() < 1 / 3 else random.uniform(0.3, 1.5)
    finally:
        stage.proxy.thaw()


def delay(stage: Stage, random: Random) -> Fault:
    """Everything is late."""
    yield from _connected(stage)
    stage.proxy.delay(random.uniform(0.05, 0.6))
    try:
        yield random.uniform(1, 2)
    finally:
        stage.proxy.delay(0)


def throttle(stage: Stage, random: Random) -> Fault:
    """A line of a few kB a second."""
    yield from _connected(stage)
    stage.proxy.throttle(random.uniform(500, 5000))
    try:
        yield random.uniform(1, 2)
    finally:
        stage.proxy.throttle(0)


def half_open(stage: Stage, _random: Random) -> Fault:
    """The broker's side is closed, and the daemon's side has to find out by itself."""
    yield from _connected(stage)
    stage.proxy.half_open()
    yield from _connected(stage)


def refuse(stage: Stage, random: Random) -> Fault:
    """The connections are cut, and no new one is taken for a while."""
    yield from _connected(stage)
    stage.proxy.refuse()
    stage.proxy.cut()
    try:
        yield random.uniform(0.5, 1.5)
    finally:
        stage.proxy.accept()


def kill_engine(stage: Stage, _random: Random) -> Fault:
    yield from until(stage.node.engine, "the daemon has an engine")
    pid = stage.node.engine()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def kill_daemon(stage: Stage, random: Random) -> Fault:
    stage.node.kill()
    yield random.uniform(0, 0.5)
    stage.node.start()


def kill_broker(stage: Stage, random: Random) -> Fault:
    """It returns with what it had saved, a second ago at the latest."""
    stage.broker.kill()
    yield random.uniform(0, 0.5)
    stage.restart_broker(forget=False)


def wipe_broker(stage: Stage, random: Random) -> Fault:
    """It returns with nothing, as one without persistence."""
    stage.broker.kill()
    yield random.uniform(0, 0.5)
    stage.restart_broker(forget=True)


def stop_engine(stage: Stage, random: Random) -> Fault:
    yield from until(stage.node.engine, "the daemon has an engine")
    pid = stage.node.engine()
    if pid is None:
        return
    go_on = stage.stop_engine(pid)
    try:
        yield random.uniform(0.3, 2)
    finally:
        go_on()


def stop_daemon(stage: Stage, random: Random) -> Fault:
    stage.node.signal(signal.SIGSTOP)
    try:
        yield random.uniform(0.3, 2)
    finally:
        stage.node.signal(signal.SIGCONT)


def stop_broker(stage: Stage, random: Random) -> Fault:
    stage.broker.pause()
    try:
        yield random.uniform(0.3, 2)
    finally:
        stage.broker.resume()


KINDS: dict[str, Callable[[Stage, Random], Fault]] = {
    "cut": cut,
    "reset": reset,
    "reset in mid-packet": torn,
    "freeze": freeze,
    "delay": delay,
    "throttle": throttle,
    "half-open": half_open,
    "refuse": refuse,
    "kill -9 engine": kill_engine,
    "kill -9 daemon": kill_daemon,
    "kill -9 broker": kill_broker,
    "kill -9 broker, no persistence": wipe_broker,
    "SIGSTOP engine": stop_engine,
    "SIGSTOP daemon": stop_daemon,
    "SIGSTOP broker": stop_broker,
}
#: After these, messages that the broker had confirmed may be gone: consumers have to ask again for what they lack.
DEATHS_OF_THE_BROKER = ("kill -9 broker", "kill -9 broker, no persistence")
