"""The back ends under test: what computes the models of a test, and the marks of modules that concern several."""

from collections.abc import Callable

import pytest
import torch

from model.gpt import GPT
from model.native.abi import open_library
from model.native.lowering import Lowering
from model.native.native_model import NativeModel
from server.engine.native_runner import NativeRunner
from server.engine.runner import Runner
from server.engine.sampling.native import NativeSampler
from server.engine.torch_runner import TorchRunner
from server.engine.verify import Choose, choose_by_torch

Clock = Callable[[], float]


def by_torch(model: GPT, num_blocks: int, clock: Clock) -> Runner:
    return TorchRunner(model, num_blocks, clock)


def natively(model: GPT, num_blocks: int, clock: Clock) -> Runner:
    return NativeRunner(NativeModel(Lowering(model, open_library()), num_blocks, torch.get_num_threads()), clock)


BACKENDS: dict[str, Callable[[GPT, int, Clock], Runner]] = {"torch": by_torch, "native": natively}
# As `pytestmark`: the tests of the module run on each back end, or on the native one. All others run on torch.
on_every_backend = pytest.mark.parametrize("backend", BACKENDS, indirect=True, scope="module")
natively_only = pytest.mark.parametrize("backend", ["native"], indirect=True, scope="module")


class Chosen:
    """The back end of the test that is running, see `conftest.backend`."""

    name = "torch"


def new_runner(model: GPT, num_blocks: int, clock: Clock) -> Runner:
    """A runner of the back end under test."""
    return BACKENDS[Chosen.name](model, num_blocks, clock)


def choose_on(backend: str) -> Choose:
    """What chooses tokens beside that back end."""
    return NativeSampler(open_library()) if backend == "native" else choose_by_torch


def new_choose() -> Choose:
    """What chooses tokens beside the back end under test."""
    return choose_on(Chosen.name)
