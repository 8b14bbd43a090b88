"""Elementwise functions must give a value the same bits wherever it stands in a step; some library loops do not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from engine_driver import decode, engine_core
from request_mix import request_mix
from tiny_models import FAMILIES, tiny_model

from model.kernels import ROW_TILE
from model.layers import ACTIVATIONS, EXACT_ACTIVATIONS

ODD_WIDTH = 67  # whole row tiles of it are no multiple of any vector


def random_rows(name: str, rows: int, width: int, seed: int = 0) -> torch.Tensor:
    columns = width * (2 if name == "swiglu" else 1)
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("name", list(EXACT_ACTIVATIONS))
def test_a_row_has_the_same_bits_first_and_last_in_its_tile(name: str) -> None:
    activation = EXACT_ACTIVATIONS[name]
    for seed in range(300):
        rows = random_rows(name, ROW_TILE, ODD_WIDTH, seed)
        assert torch.equal(activation(rows)[-1], activation(rows.roll(1, 0))[0])


@pytest.mark.parametrize("name", list(EXACT_ACTIVATIONS))
@pytest.mark.parametrize(("threads", "width", "rows"), [(2, 100, 344), (3, 2048, 40)])
def test_a_row_has_the_same_bits_wherever_threads_divide_the_step(
    name: str, threads: int, width: int, rows: int, set_threads: Callable[[int], None]
) -> None:
    activation = EXACT_ACTIVATIONS[name]
    for seed in range(20):
        values = random_rows(name, rows, width, seed)
        set_threads(1)
        expected = activation(values)
        set_threads(threads)
        assert torch.equal(activation(values), expected)


@pytest.mark.parametrize("name", list(EXACT_ACTIVATIONS))
def test_whole_vectors_in_one_part_have_no_tail(name: str) -> None:
    for seed in range(20):
        rows = random_rows(name, 96, 96, seed)
        expected = torch.cat([EXACT_ACTIVATIONS[name](rows[start : start + 8]) for start in range(0, 96, 8)])
        assert torch.equal(EXACT_ACTIVATIONS[name](rows), expected)


def test_a_model_of_any_width_is_exact() -> None:
    model = tiny_model(replace(FAMILIES["gpt"], intermediate_size=50))
    requests = request_mix(8, max_prompt=60)
    together = decode(engine_core(model), requests).results
    assert together == {given.id: decode(engine_core(model), [given]).results[given.id] for given in requests}


@pytest.mark.parametrize("name", list(EXACT_ACTIVATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_activations_are_the_library_s_up_to_rounding(name: str, dtype: torch.dtype) -> None:
    rows = random_rows(name, 64, 96).to(dtype)
    torch.testing.assert_close(EXACT_ACTIVATIONS[name](rows), ACTIVATIONS[name](rows))
