"""Fixtures of the HTTP edge's tests."""

from collections.abc import AsyncIterator

import httpx
import pytest
from api_apps import client_of, make_app
from fake_engine import FakeEngine


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(make_app(engine)) as client:
        yield client
