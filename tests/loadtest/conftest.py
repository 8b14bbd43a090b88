"""Fixtures of the load generator's tests."""

from collections.abc import Iterator

import pytest
from fake_openai import FakeOpenAI


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    """A running fake server."""
    yield from _running()


@pytest.fixture
def other() -> Iterator[FakeOpenAI]:
    """A second one."""
    yield from _running()


def _running() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    server.start()
    yield server
    server.stop()
