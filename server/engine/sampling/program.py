"""A sequence's parameters as the native sampler reads them: `DrawProgram` of `model/native/csrc/draw.h`."""

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

from server.engine.sampling.order import COLDEST

# In the order of `DrawStage`, of which 0 is the end.
_STAGES = ("repetition_penalty", "frequency_penalty", "presence_penalty", "temperature", "top_k", "top_p", "min_p")
_NUM_PENALTIES = 3
_PROGRAM = struct.Struct("<Qq6f8s")


class DrawValues(NamedTuple):
    """The parameters that the native sampler knows, as in `SamplingParams`."""

    seed: int
    top_k: int
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    temperature: float  # read only where it is a stage
    top_p: float
    min_p: float


def program_of(stages: Sequence[str], values: DrawValues) -> bytes | None:
    """None where a stage is asked for that only torch has, or an order: penalties first, filters last."""
    if any(name not in _STAGES for name in stages):
        return None
    codes = [_STAGES.index(name) + 1 for name in stages]
    kinds = [(code > _NUM_PENALTIES) + (code > _NUM_PENALTIES + 1) for code in codes]
    if kinds != sorted(kinds):
        return None
    return _pack(values if "temperature" in stages else values._replace(temperature=1.0), bytes(codes))


def draw_alone(seed: int, is_greedy: bool) -> bytes:
    """The draw from logits that all stages have been applied to already."""
    return _PROGRAM.pack(seed, 0, 1.0, 0.0, 0.0, 0.0 if is_greedy else 1.0, 1.0, 0.0, b"")


def looks_back(program: bytes) -> bool:
    """Whether a program has penalties: they come first, so one look tells."""
    return 0 < program[_PROGRAM.size - 8] <= _NUM_PENALTIES


def _pack(values: DrawValues, codes: bytes) -> bytes:
    # A temperature of 0 keeps the arg-max alone.
    return _PROGRAM.pack(
        *values[:5],
        max(values.temperature, COLDEST) if values.temperature else 0.0,
        values.top_p,
        _log_of_single(values.min_p),
        codes,
    )


def _log_of_single(value: float) -> float:
    """The logarithm of a parameter in float32, as which the filters take it."""
    (single,) = struct.unpack("<f", struct.pack("<f", value))
    return math.log(single) if single > 0 else -math.inf
