"""From a checkpoint folder to a running engine: the one place where device, precision and sizes are chosen."""

import logging
import time
from pathlib import Path

import torch

from model.checkpoint import load_checkpoint
from model.config import ModelConfig
from model.config_json import read_config
from model.fingerprint import checkpoint_fingerprint
from model.memory import available_bytes
from model.paged import BLOCK_SIZE
from model.tokenizer import Tokenizer
from server.engine.backend import Backend, Backends, decode_of
from server.engine.block_pool import BlockPool
from server.engine.config import EngineConfig
from server.engine.core import EngineCore
from server.engine.drafting.draft_model import DraftModel
from server.engine.drafting.load_draft import load_draft
from server.engine.drafting.speculator import DraftingSpeculator
from server.engine.grammar import GrammarCompiler
from server.engine.multi_step import MultiStep
from server.engine.parts import Parts
from server.engine.scheduler import Scheduler
from server.engine.sequence import blocks_for
from server.engine.types import EngineInfo
from server.engine.verify import Choose

logger = logging.getLogger(__name__)

# The share of the memory at hand that one model's cache may take when its size is not given.
_KV_SHARE = 0.25


def load_engine(
    checkpoint: Path, config: EngineConfig, draft: Path | None = None, backends: Backends | None = None
) -> EngineCore:
    """Load a checkpoint folder and prepare it for serving; `draft` is a smaller model that guesses ahead of it.

    `backends` are those of the whole process, where it loads several models.

    Raises CheckpointError for a folder that cannot be served, ValueError for a configuration the machine cannot meet or
    a draft with another vocabulary, and InexactBackendError when the exactness check fails.
    """
    device = _choose_device(config)
    dtype = _choose_dtype(config, device)
    model_config = read_config(checkpoint)
    model = load_checkpoint(checkpoint, dtype, device)
    draft_model = None if draft is None else load_draft(draft, checkpoint, dtype, device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    backends = backends or Backends(config)
    backend, draft_backend = backends.open(model, draft_model)
    # Where the back end has packed weights of its own, these would still count as memory that is taken.
    del model, draft_model
    bytes_per_block = sum(one.bytes_per_block for one in (backend, draft_backend) if one is not None)
    num_blocks = _size_cache(model_config, config, bytes_per_block, device)
    tokenizer = Tokenizer.load(checkpoint)
    dtype_name = str(dtype).removeprefix("torch.")
    info = EngineInfo(
        vocab_size=model_config.vocab_size,
        context_length=min(model_config.context_length, num_blocks * BLOCK_SIZE),
        eos_token_ids=tokenizer.eos_token_ids,
        num_parameters=num_parameters,
        dtype=dtype_name,
        device=str(device),
        num_blocks=num_blocks,
        backend=backend.name,
        fingerprint=checkpoint_fingerprint(checkpoint),
        has_draft_model=draft_backend is not None,
        quantize=config.quantize,
        kv_cache=dtype_name if config.kv_cache == "auto" else config.kv_cache,
        num_layers=model_config.num_layers,
        num_heads=model_config.num_heads,
        num_experts_per_token=model_config.num_experts_per_token,
    )
    _log_loaded(checkpoint, info, model_config.context_length)
    scheduler = Scheduler(BlockPool(num_blocks), config.max_running, config.max_step_tokens)
    choose = backends.open_sampler(device)
    speculator = _build_speculator(draft_backend, num_blocks, config.max_step_tokens, choose)
    grammars = GrammarCompiler(tokenizer, model_config.vocab_size)
    runner = backend.new_runner(num_blocks)
    decode = decode_of(runner)
    parts = Parts(speculator, grammars.start, choose, None if decode is None else MultiStep(decode))
    return EngineCore(info, runner, scheduler, time.monotonic, parts)


def _log_loaded(checkpoint: Path, info: EngineInfo, full_context: int) -> None:
    if info.context_length < full_context:
        logger.warning(
            "num_blocks %d shortens the context of %s from %d to %d tokens",
            info.num_blocks,
            checkpoint,
            full_context,
            info.context_length,
        )
    logger.info(
        "loaded checkpoint=%s dtype=%s device=%s backend=%r blocks=%d",
        checkpoint,
        info.dtype,
        info.device,
        info.backend,
        info.num_blocks,
    )


def _build_speculator(
    draft: Backend | None, num_blocks: int, max_step_tokens: int, choose: Choose
) -> DraftingSpeculator:
    """The draft model's cache has as many blocks as the target's, as it is addressed by the same tables."""
    if draft is None:
        return DraftingSpeculator()
    runner = draft.new_runner(num_blocks)
    return DraftingSpeculator(DraftModel(runner, max_step_tokens, time.monotonic, choose, decode_of(runner)))


def _choose_device(config: EngineConfig) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise ValueError("device is 'cuda', but this machine has no usable CUDA device")
    return torch.device("cuda" if has_cuda and config.device != "cpu" else "cpu")


def _choose_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it; emulated it would be slower than float32."""
    if config.dtype == "auto":
        capabilities = torch.cpu.get_capabilities()
        native = device.type == "cuda" or capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def _size_cache(model: ModelConfig, config: EngineConfig, bytes_per_block: int, device: torch.device) -> int:
    """As many blocks as asked for, or else enough for every running sequence at full length, as far as memory goes."""
    wanted = config.num_blocks or config.max_running * blocks_for(model.context_length)
    available = available_bytes(device)
    if available is None:
        return wanted
    share = 1.0 if config.num_blocks else _KV_SHARE
    affordable = int(available * share) // bytes_per_block
    if affordable < (config.num_blocks or 1):
        raise ValueError(f"num_blocks is {wanted}; the {available} bytes of memory at hand hold at most {affordable}")
    return min(wanted, affordable)
