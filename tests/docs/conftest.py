"""The broker and the node that the pages' commands run against."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.brokers import NoBrokerError
from tests.docs import pages
from tests.docs.playground import Playground, playground


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    """A playground with the node that the README starts. Its broker knows no other: `Client` has to find it."""
    [command] = [
        fence.text for section in pages.sections("README.md") for fence in section.fences if fence.directive == "node"
    ]
    try:
        with playground(tmp_path_factory.mktemp("docs"), command) as started:
            yield started
    except NoBrokerError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
