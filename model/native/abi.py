"""The C structures and functions of the native library: `csrc/abi.h` in ctypes, and nothing else."""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_double, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path

from model.native.build import LIBRARY, SOURCES, sources_hash

ELEMENT_TYPES = {"torch.float32": 0, "torch.bfloat16": 1}
ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "swiglu": 3}
CHUNK_BYTES = 16  # inputs of a packed weight are padded to whole chunks of four dots
LANES = 16  # float32 numbers of a register
PANEL = 64  # columns of a packed weight panel


class NormWeights(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("size", c_int64), ("epsilon", c_double))


class ProductWeights(Structure):
    _fields_ = (
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("scales", c_void_p),
        ("code_sums", c_void_p),
        ("columns", c_int64),
        ("inputs", c_int64),
    )


class LayerWeights(Structure):
    _fields_ = (
        ("attention_norm", NormWeights),
        ("qkv", ProductWeights),
        ("query_norm", NormWeights),
        ("key_norm", NormWeights),
        ("out", ProductWeights),
        ("feed_forward_norm", NormWeights),
        ("num_experts", c_int64),
        ("experts_per_token", c_int64),
        ("router", ProductWeights),
        ("up", POINTER(ProductWeights)),
        ("down", POINTER(ProductWeights)),
    )


class ModelWeights(Structure):
    _fields_ = (
        ("element", c_int64),
        ("hidden_size", c_int64),
        ("num_layers", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("inner_size", c_int64),
        ("vocab_size", c_int64),
        ("context_length", c_int64),
        ("pre_norm", c_int64),
        ("activation", c_int64),
        ("sliding_window", c_int64),
        ("int8_cache", c_int64),
        ("embedding", c_void_p),
        ("position_embedding", c_void_p),
        ("position_table", c_void_p),
        ("rotary_table", c_void_p),
        ("alibi_slopes", c_void_p),
        ("layers", POINTER(LayerWeights)),
        ("final_norm", NormWeights),
        ("unembedding", ProductWeights),
    )


class StepWork(Structure):
    _fields_ = (
        ("num_rows", c_int64),
        ("num_spans", c_int64),
        ("num_wanted", c_int64),
        ("tokens", c_void_p),
        ("spans", c_void_p),
        ("blocks", c_void_p),
        ("wanted", c_void_p),
        ("logits", c_void_p),
        ("is_finite", c_void_p),
        ("chosen", c_void_p),
        ("gates", c_void_p),
        ("attention", c_void_p),
    )


class DecodeWork(Structure):
    _fields_ = (
        ("step", StepWork),
        ("programs", c_char_p),
        ("endings", c_void_p),
        ("num_endings", c_void_p),
        ("most_passes", c_int64),
        ("seconds", c_double),
        ("watched", c_int64),
        ("chosen", c_void_p),
        ("num_passes", c_int64),
        ("num_chosen", c_int64),
        ("forward_seconds", c_double),
        ("choose_seconds", c_double),
    )


class LibraryError(RuntimeError):
    """The native library is missing, does not load, or was built from other sources."""


class NativeError(RuntimeError):
    """The library refused; the message is its own."""


def check(library: ctypes.CDLL, status: int) -> None:
    """Raises NativeError unless a function's status is 0; to be called by the thread that called the function."""
    if status:
        message: bytes = library.minigpt_error()
        raise NativeError(message.decode())


def best_instruction_set(library: ctypes.CDLL) -> str:
    """avx512, avx2 or portable: what a session takes that is asked for none."""
    name: bytes = library.minigpt_best_instruction_set()
    return name.decode()


def open_library(path: Path = LIBRARY) -> ctypes.CDLL:
    """The library with its functions' types declared. Raises LibraryError."""
    if not path.exists():
        raise LibraryError("it was not built, as there was no C++ compiler when the package was installed")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryError(f"it does not load: {error}") from error
    library.minigpt_sources.restype = c_char_p
    # An installed package has no sources to compare with.
    if SOURCES.exists() and library.minigpt_sources().decode() != sources_hash():
        raise LibraryError("it was built from other sources; install the package again")
    library.minigpt_error.restype = c_char_p
    library.minigpt_create.argtypes = (POINTER(ModelWeights), c_char_p, c_int64, c_int64, POINTER(c_void_p))
    library.minigpt_create.restype = c_int
    library.minigpt_destroy.argtypes = (c_void_p,)
    library.minigpt_destroy.restype = None
    library.minigpt_instruction_set.argtypes = (c_void_p,)
    library.minigpt_instruction_set.restype = c_char_p
    library.minigpt_best_instruction_set.argtypes = ()
    library.minigpt_best_instruction_set.restype = c_char_p
    library.minigpt_step.argtypes = (c_void_p, POINTER(StepWork))
    library.minigpt_step.restype = c_int
    library.minigpt_decode.argtypes = (c_void_p, POINTER(DecodeWork))
    library.minigpt_decode.restype = c_int
    library.minigpt_scrub.argtypes = (c_void_p, c_void_p, c_int64)
    library.minigpt_scrub.restype = None
    library.minigpt_choose.argtypes = (c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p)
    library.minigpt_choose.restype = c_int
    library.minigpt_read_memory.argtypes = (c_void_p, c_int64, c_int64)
    library.minigpt_read_memory.restype = c_uint64
    library.minigpt_compute_dots.argtypes = (c_char_p, c_int64, c_int64, c_int64, POINTER(c_double))
    library.minigpt_compute_dots.restype = c_int
    library.minigpt_allocate.argtypes = (c_int64,)
    library.minigpt_allocate.restype = c_void_p
    library.minigpt_free.argtypes = (c_void_p, c_int64)
    library.minigpt_free.restype = None
    library.minigpt_pack.argtypes = (c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int64, c_void_p)
    library.minigpt_pack.restype = None
    return library
