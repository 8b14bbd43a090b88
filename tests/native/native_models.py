"""Native models for the tests, straight from a torch one."""

from model.gpt import GPT
from model.native.abi import open_library
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
    lowering = Lowering(model, open_library(), quantize, kv_cache)
    return NativeModel(lowering, num_blocks, num_threads, instruction_set)
