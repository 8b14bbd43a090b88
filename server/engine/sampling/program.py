"""A sequence's parameters as the native sampler reads them: `DrawProgram` of `model/native/csrc/draw.h`."""

import math
import struct
from typing import TYPE_CHECKING

from server.engine.sampling.order import COLDEST, MIROSTAT

if TYPE_CHECKING:
    from server.engine.params import SamplingParams

# In the order of `DrawStage`, of which 0 is the end.
_STAGES = ("repetition_penalty", "frequency_penalty", "presence_penalty", "temperature", "top_k", "top_p", "min_p")
_NUM_PENALTIES = 3
_PROGRAM = struct.Struct("<Qq6f8s")


def program_of(params: "SamplingParams") -> bytes | None:
    """None where a stage is asked for that only torch has, or an order: penalties first, filters last."""
    stages = params.stages
    if params.dynatemp_range > 0 or MIROSTAT in stages or any(name not in _STAGES for name in stages):
        return None
    codes = [_STAGES.index(name) + 1 for name in stages]
    kinds = [(code > _NUM_PENALTIES) + (code > _NUM_PENALTIES + 1) for code in codes]
    return _pack(params, bytes(codes)) if kinds == sorted(kinds) else None


def draw_alone(params: "SamplingParams") -> bytes:
    """The draw from logits that all stages have been applied to already."""
    return _PROGRAM.pack(params.seed, 0, 1.0, 0.0, 0.0, 0.0 if params.is_greedy else 1.0, 1.0, 0.0, b"")


def looks_back(program: bytes) -> bool:
    """Whether a program has penalties: they come first, so one look tells."""
    return 0 < program[_PROGRAM.size - 8] <= _NUM_PENALTIES


def _pack(params: "SamplingParams", codes: bytes) -> bytes:
    is_scaled = "temperature" in params.stages
    temperature = 0.0 if params.is_greedy else max(params.temperature, COLDEST) if is_scaled else 1.0
    return _PROGRAM.pack(
        params.seed,
        params.top_k,
        params.repetition_penalty,
        params.frequency_penalty,
        params.presence_penalty,
        temperature,
        params.top_p,
        _log_of_single(params.min_p),
        codes,
    )


def _log_of_single(value: float) -> float:
    """The logarithm of a parameter in float32, as which the filters take it."""
    (single,) = struct.unpack("<f", struct.pack("<f", value))
    return math.log(single) if single > 0 else -math.inf
