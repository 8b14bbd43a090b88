"""Elementwise functions must give a value the same bits wherever it stands in a step; some library loops do not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from engine_driver import decode, engine_core
from request_mix import request_mix
from tiny_models import FAMILIES, tiny_model

from model.kernels import ROW_TILE
from model.layers import ACTIVATIONS

TAILS = (
    "the vectorised loop of silu and gelu_tanh and the scalar one that finishes an uneven tail (of the tensor, or of "
    "each thread's part) differ in the last bit of float32"
)
HAS_TAILS = ("gelu_tanh", "swiglu")
NAMES = [
    pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=TAILS)) if name in HAS_TAILS else name
    for name in ACTIVATIONS
]
ODD_WIDTH = 67  # whole row tiles of it are no multiple of any vector


def random_rows(name: str, rows: int, width: int, seed: int = 0) -> torch.Tensor:
    columns = width * (2 if name == "swiglu" else 1)
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_the_same_bits_first_and_last_in_its_tile(name: str) -> None:
    activation = ACTIVATIONS[name]
    for seed in range(300):
        rows = random_rows(name, ROW_TILE, ODD_WIDTH, seed)
        assert torch.equal(activation(rows)[-1], activation(rows.roll(1, 0))[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("threads", "width", "rows"), [(2, 100, 344), (3, 2048, 40)])
def test_a_row_has_the_same_bits_wherever_threads_divide_the_step(
    name: str, threads: int, width: int, rows: int, set_threads: Callable[[int], None]
) -> None:
    activation = ACTIVATIONS[name]
    for seed in range(20):
        values = random_rows(name, rows, width, seed)
        set_threads(1)
        expected = activation(values)
        set_threads(threads)
        assert torch.equal(activation(values), expected)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_whole_vectors_in_one_part_have_no_tail(name: str) -> None:
    """What does hold today, and keeps models of the usual widths exact on two threads."""
    for seed in range(20):
        rows = random_rows(name, 96, 96, seed)
        expected = torch.cat([ACTIVATIONS[name](rows[start : start + 8]) for start in range(0, 96, 8)])
        assert torch.equal(ACTIVATIONS[name](rows), expected)


@pytest.mark.xfail(strict=True, reason=TAILS + ": such models are even refused, as if a product were to blame")
def test_a_model_of_any_width_is_exact() -> None:
    model = tiny_model(replace(FAMILIES["gpt"], intermediate_size=50))
    requests = request_mix(8, max_prompt=60)
    together = decode(engine_core(model), requests).results
    assert together == {given.id: decode(engine_core(model), [given]).results[given.id] for given in requests}
