"""Fixtures of the load generator's tests."""

from collections.abc import Iterator

import pytest
from fake_openai import FakeOpenAI


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    """A running fake server."""
    server = FakeOpenAI()
    server.start()
    yield server
    server.stop()
