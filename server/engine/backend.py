"""Chooses what computes a loaded model and what chooses its tokens: the native library where it can, else torch.

Whichever computes has proved that it is exact. The only file that knows both, and the one that says what is lost.
"""

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from model.gpt import GPT
from model.native.abi import LibraryError, NativeError, best_instruction_set, open_library
from model.native.lowering import Lowering, UnsupportedError
from model.native.native_model import NativeModel
from model.paged import kv_bytes_per_block
from server.engine.config import EngineConfig
from server.engine.cores import available_cores
from server.engine.multi_step import Decode
from server.engine.native_runner import NativeRunner
from server.engine.runner import Runner
from server.engine.sampling.native import NativeSampler
from server.engine.selfcheck import InexactBackendError, is_exact, make_exact
from server.engine.torch_runner import TorchRunner
from server.engine.verify import Choose, choose_by_torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """A model, ready to be given a cache."""

    name: str  # torch, or native and its instruction set
    bytes_per_block: int  # of the cache
    new_runner: Callable[[int], Runner]  # with a cache of so many blocks; ValueError where that cannot be had


class Backends:
    """Opens the back ends of one process's models. What the machine lacks is said once, what a model lacks for each."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._torch_threads = config.threads or default_torch_threads()
        self._num_threads = config.threads or available_cores()
        if self._num_threads > available_cores():
            logger.warning("threads is %d, but only %d cores may be used", self._num_threads, available_cores())
        self._library: ctypes.CDLL | None = None
        self._has_said_lost = False
        self._wants_native = config.backend != "torch"
        self._demand = _demand(config)

    def open(self, model: GPT, draft: GPT | None) -> tuple[Backend, Backend | None]:
        """What computes a model, and the same for the smaller one that drafts for it.

        Raises ValueError when the native back end, or what only it can do, is asked for and it cannot serve, and
        InexactBackendError when none is exact.
        """
        torch.set_num_threads(self._torch_threads)
        # Other devices are torch's, and nobody need be told, but one who asks for the native back end.
        is_on_cpu = model.embedding.weight.device.type == "cpu"
        if self._wants_native and (is_on_cpu or self._demand):
            try:
                return self._open_native(model, draft)
            except (LibraryError, UnsupportedError, InexactBackendError, NativeError, MemoryError) as error:
                if self._demand:
                    raise ValueError(f"{self._demand}, but the native back end cannot serve: {error}") from error
                if isinstance(error, LibraryError):
                    self._lose_library(error)
                else:
                    logger.warning("torch serves instead of the native back end, and slower: %s", error)
        if self._demand:
            raise ValueError(f"{self._demand}, which the torch back end cannot do")
        return self._open_torch(model, draft)

    def open_sampler(self, device: torch.device) -> Choose:
        """What chooses from logits on that device: the library, where there is one for it, or torch.

        Nobody can tell by the tokens, but torch takes longer over them.
        """
        if device.type != "cpu":
            return choose_by_torch
        try:
            return NativeSampler(self._open_library())
        except LibraryError as error:
            self._lose_library(error)
            return choose_by_torch

    def _open_library(self) -> ctypes.CDLL:
        self._library = self._library or open_library()
        return self._library

    def _lose_library(self, reason: LibraryError) -> None:
        """Say once what that means: a library that is not there now will not be there for the next model either."""
        if not self._has_said_lost:
            lost = "computes and chooses tokens" if self._wants_native else "chooses tokens"
            logger.warning("torch %s instead of the native library, and slower: %s", lost, reason)
        self._wants_native, self._has_said_lost = False, True

    def _open_native(self, model: GPT, draft: GPT | None) -> tuple[Backend, Backend | None]:
        library = self._open_library()
        lowering = self._lower(model, library)
        if not is_exact(_new_runner(lowering), self._config.max_step_tokens, self._num_threads):
            raise InexactBackendError("on this machine its rows depend on their neighbours")
        # A draft's tokens prove right or wrong whatever their last bits: the target's own check will do for both.
        lowered_draft = None if draft is None else self._lower_draft(draft, library)
        return self._natively(lowering), None if lowered_draft is None else self._natively(lowered_draft)

    def _lower(self, model: GPT, library: ctypes.CDLL) -> Lowering:
        return Lowering(model, library, self._config.quantize, self._config.kv_cache)

    def _lower_draft(self, draft: GPT, library: ctypes.CDLL) -> Lowering:
        try:
            return self._lower(draft, library)
        except UnsupportedError as error:
            raise UnsupportedError(f"of the draft model, {error}") from error

    def _natively(self, lowering: Lowering) -> Backend:
        def new_runner(num_blocks: int) -> Runner:
            try:
                return _new_runner(lowering)(num_blocks, self._num_threads)
            except NativeError as error:
                raise ValueError(f"the native back end cannot start: {error}") from error

        return Backend(f"native {best_instruction_set(lowering.library)}", lowering.bytes_per_block, new_runner)

    def _open_torch(self, model: GPT, draft: GPT | None) -> tuple[Backend, Backend | None]:
        product = make_exact(model, self._config.max_step_tokens, self._config.allow_inexact)
        if draft is None:
            return _by_torch(model), None
        # The target's own check will do for both, see above.
        draft.use_exact_activations()
        draft.use_product(product)
        return _by_torch(model), _by_torch(draft)


def decode_of(runner: Runner) -> Decode | None:
    """Passes in a row by a runner, where it chooses tokens itself."""
    return runner.decode if isinstance(runner, NativeRunner) else None


def _demand(config: EngineConfig) -> str:
    """What was asked for that torch cannot do, in words; empty for nothing."""
    if config.quantize != "none":
        return f"quantize is {config.quantize!r}"
    if config.kv_cache != "auto":
        return f"kv_cache is {config.kv_cache!r}"
    return "backend is 'native'" if config.backend == "native" else ""


def default_torch_threads() -> int:
    """One core is left to the HTTP process: a thread that waits for a busy core holds up the others at every operation.

    The native back end's threads take pieces of work instead, so that one put aside holds up a piece at most.
    """
    return max(1, available_cores() - 1)


def _new_runner(lowering: Lowering) -> Callable[[int, int], Runner]:
    return lambda num_blocks, num_threads: NativeRunner(NativeModel(lowering, num_blocks, num_threads))


def _by_torch(model: GPT) -> Backend:
    bytes_per_block = kv_bytes_per_block(model.config, model.embedding.weight.dtype)

    def new_runner(num_blocks: int) -> Runner:
        try:
            return TorchRunner(model, num_blocks)
        except RuntimeError as error:  # all that torch raises for memory a processor cannot have
            size = f"the {num_blocks * bytes_per_block} bytes of such a cache cannot be had"
            raise ValueError(f"num_blocks is {num_blocks}; {size}") from error

    return Backend("torch", bytes_per_block, new_runner)
