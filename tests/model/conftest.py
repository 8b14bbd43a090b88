"""Set-up for the tests of model/: transformers keeps its progress bars to itself, tiny products stay on one thread."""

from collections.abc import Iterator

import pytest
import torch
from transformers.utils import logging


@pytest.fixture(autouse=True, scope="session")
def quiet_transformers() -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Waking a second thread costs more than the products of these models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
