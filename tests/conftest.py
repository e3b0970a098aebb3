"""Fixtures for all rooms: brokers.

`broker` is shared by the whole session: use topics of your own. `private_broker` is the test's alone, and may be
killed, paused and started again. `start_broker` starts more of those, with further lines of configuration.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from tests import brokers

pytest_plugins = ["tests.fixtures"]

# A shell starts what it puts into the background with Ctrl-C ignored, and the processes of tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that is busy with other things is no failure.
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

StartBroker = Callable[..., brokers.LocalBroker]
_BROKERS = pytest.StashKey[list[brokers.Broker]]()
_FIXTURES = {"broker", "private_broker", "start_broker"}


def _no_broker(error: brokers.NoBrokerError) -> NoReturn:
    """In CI a missing broker is a failure: a skipped promise is not a kept one."""
    if os.environ.get("CI"):
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def broker() -> Iterator[brokers.Broker]:
    """A broker that all tests share."""
    with ExitStack() as stack:
        try:
            started = stack.enter_context(brokers.shared_broker())
        except brokers.NoBrokerError as error:
            _no_broker(error)
        yield started


@pytest.fixture
def start_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartBroker]:
    """Start brokers of the test's own: `start_broker(config=["max_keepalive 60"], persistence=True)`."""
    with ExitStack() as stack:

        def start(*, config: tuple[str, ...] | list[str] = (), persistence: bool = False) -> brokers.LocalBroker:
            directory: Path = tmp_path_factory.mktemp("broker")
            try:
                started = stack.enter_context(brokers.local_broker(directory, config=config, persistence=persistence))
            except brokers.NoBrokerError as error:
                _no_broker(error)
            request.node.stash.setdefault(_BROKERS, []).append(started)
            return started

        yield start


@pytest.fixture
def private_broker(start_broker: StartBroker) -> brokers.LocalBroker:
    """A broker of the test's own: `kill()`, `start()` again on the same port, `stop()`, `pause()`, `resume()`."""
    return start_broker()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what talks to a real broker, so that `-m "not broker"` leaves it out."""
    for item in items:
        if _FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.broker)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the log of a failed test's brokers."""
    report = yield
    if report.failed:
        shared = getattr(item, "funcargs", {}).get("broker")
        for used in [*([shared] if shared else []), *item.stash.get(_BROKERS, [])]:
            report.sections.append((f"log of the broker on port {used.port}", used.log()))
    return report
