"""Native models for the tests, straight from a torch one."""

import pytest

from model.gpt import GPT
from model.native.abi import NativeError, open_library
from model.native.lowering import KVCache, Lowering, Quantize
from model.native.native_model import NativeModel


def native_model(
    model: GPT,
    num_blocks: int,
    num_threads: int,
    instruction_set: str = "",
    quantize: Quantize = "none",
    kv_cache: KVCache = "auto",
) -> NativeModel:
    """Skips the test where the processor lacks the instruction set."""
    lowering = Lowering(model, open_library(), quantize, kv_cache)
    try:
        return NativeModel(lowering, num_blocks, num_threads, instruction_set)
    except NativeError as error:
        if "not available on this processor" in str(error):
            pytest.skip(str(error))
        raise
