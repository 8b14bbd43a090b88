"""Set-up for the tests of the engine: one thread unless a test asks for more, and torch unless on every back end."""

from collections.abc import Callable, Iterator

import pytest
import torch
from backends import Chosen


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Waking a second thread costs more than the products of these models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """`torch.set_num_threads` for one test."""
    threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """What computes the models of the running test, see `backends.on_every_backend`."""
    Chosen.name = getattr(request, "param", "torch")
    yield Chosen.name
    Chosen.name = "torch"
