"""Native models for the tests, straight from a torch one."""

from model.gpt import GPT
from model.native.abi import open_library
from model.native.lowering import Lowering, Quantize
from model.native.native_model import NativeModel


def native_model(
    model: GPT, num_blocks: int, num_threads: int, instruction_set: str = "", quantize: Quantize = "none"
) -> NativeModel:
    return NativeModel(Lowering(model, open_library(), quantize), num_blocks, num_threads, instruction_set)
