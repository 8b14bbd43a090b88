"""The seam for matrix products and the row padding that makes library products exact. Knows no layer and no batch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# (rows [..., in], weight [out, in], bias [out] or None) -> [..., out]
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

# A library product computes a row with the same bits at every height that is a multiple of this (measured for torch
# 2.13 on AVX-512 CPUs, float32 and bfloat16); heights 1 to 3 take other code paths. `selfcheck` tests it at start.
ROW_TILE = 8


def padding(rows: int, tile: int = ROW_TILE) -> int:
    """How many rows bring `rows` to the next multiple of `tile`."""
    return -rows % tile


def fixed_height(height: int) -> Product:
    """A product that only ever multiplies `height` rows at a time.

    The fallback where heights differ in bits: every call has one shape, so a row's bits cannot depend on how many
    neighbours it has. Slower, as the weight is read once per tile.
    """

    def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        padded = F.pad(flat, (0, 0, 0, padding(flat.shape[0], height)))
        tiles = [F.linear(tile, weight, bias) for tile in torch.split(padded, height)]
        return torch.cat(tiles)[: flat.shape[0]].view(*rows.shape[:-1], weight.shape[0])

    return product
