"""Chooses what computes a loaded model: the native CPU back end where it can, else torch, and says so.

Whichever it is has proved that it is exact. The only file that knows both.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from model.gpt import GPT
from model.native.abi import LibraryError, open_library
from model.native.lowering import Lowering, UnsupportedError
from model.native.native_model import NativeModel
from model.paged import kv_bytes_per_block
from server.engine.config import EngineConfig
from server.engine.native_runner import NativeRunner
from server.engine.runner import Runner
from server.engine.selfcheck import InexactBackendError, is_exact, make_exact
from server.engine.torch_runner import TorchRunner

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """A model, ready to be given a cache."""

    name: str  # torch, or native and its instruction set
    bytes_per_block: int  # of the cache
    new_runner: Callable[[int], Runner]  # with a cache of so many blocks


def open_backend(model: GPT, draft: GPT | None, config: EngineConfig) -> tuple[Backend, Backend | None]:
    """What computes a model, and the same for the smaller one that drafts for it.

    Raises ValueError when the native back end, or what only it can do, is asked for and it cannot serve, and
    InexactBackendError when none is exact.
    """
    num_threads = config.threads or default_threads()
    torch.set_num_threads(num_threads)
    only_native = _only_native(config)
    if config.backend == "torch" or model.embedding.weight.device.type != "cpu":
        if only_native:
            raise ValueError(f"{only_native}, which the torch back end, that serves here, cannot do")
        return _open_torch(model, draft, config)
    try:
        return _open_native(model, draft, config, num_threads)
    except (LibraryError, UnsupportedError, InexactBackendError) as error:
        if config.backend == "native" or only_native:
            asked = only_native or "backend is 'native'"
            raise ValueError(f"{asked}, but the native back end cannot serve: {error}") from error
        logger.warning("torch serves instead of the native back end, and slower: %s", error)
        return _open_torch(model, draft, config)


def _only_native(config: EngineConfig) -> str:
    """What was asked for that torch cannot do, in words; empty for nothing."""
    if config.quantize != "none":
        return f"quantize is {config.quantize!r}"
    return "" if config.kv_cache == "auto" else f"kv_cache is {config.kv_cache!r}"


def default_threads() -> int:
    """A thread that must wait for a busy core holds up all others: one core is left to the HTTP process."""
    return max(1, (os.cpu_count() or 2) - 1)


def _open_native(
    model: GPT, draft: GPT | None, config: EngineConfig, num_threads: int
) -> tuple[Backend, Backend | None]:
    library = open_library()

    def lowered(model: GPT) -> tuple[Backend, Callable[[int, int], Runner]]:
        lowering = Lowering(model, library, config.quantize, config.kv_cache)

        def new_runner(num_blocks: int, num_threads: int) -> Runner:
            return NativeRunner(NativeModel(lowering, num_blocks, num_threads))

        name = f"native {NativeModel(lowering, 1, 1).instruction_set}"
        return Backend(
            name, lowering.bytes_per_block, lambda num_blocks: new_runner(num_blocks, num_threads)
        ), new_runner

    backend, new_runner = lowered(model)
    if not is_exact(new_runner, config.max_step_tokens, num_threads):
        raise InexactBackendError("rows depend on their neighbours")
    return backend, None if draft is None else lowered(draft)[0]


def _open_torch(model: GPT, draft: GPT | None, config: EngineConfig) -> tuple[Backend, Backend | None]:
    product = make_exact(model, config.max_step_tokens, config.allow_inexact)
    if draft is None:
        return _by_torch(model), None
    # Its tokens prove right or wrong whatever their last bits: the target's own check will do for both.
    draft.use_exact_activations()
    draft.use_product(product)
    return _by_torch(model), _by_torch(draft)


def _by_torch(model: GPT) -> Backend:
    bytes_per_block = kv_bytes_per_block(model.config, model.embedding.weight.dtype)
    return Backend("torch", bytes_per_block, lambda num_blocks: TorchRunner(model, num_blocks))
