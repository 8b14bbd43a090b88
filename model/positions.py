"""Where a token stands: tables for rotary and sinusoidal positions and the slopes of ALiBi. Pure functions."""

import torch
from torch import Tensor

# (cosine, sine), each [..., 1, head_dim / 2]: broadcast over heads.
Rotation = tuple[Tensor, Tensor]


class PositionTable:
    """Something known of every position, float32 whatever the model's dtype, following the device it is asked from.

    No module buffer, because casting a model to bfloat16 would cast it too, and 8 bits cannot tell position 1000
    from 1001. A table rather than sines of the positions at hand, because a row has the same bits for all who read it.
    """

    def __init__(self, table: Tensor) -> None:
        self._table = table

    def rows(self, positions: Tensor) -> Tensor:
        """The table's rows [..., *row] at positions [...]."""
        if self._table.device != positions.device:
            self._table = self._table.to(positions.device)
        return self._table[positions]


def rotary_table(context_length: int, head_dim: int, theta: float) -> Tensor:
    """Cosines and sines of every position, [context_length, 2, head_dim / 2] float32 (Su et al. 2021)."""
    # Rounded as transformers rounds it: at position 8000 the last bit of a frequency moves an angle by 1e-3.
    inverse = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.arange(context_length, dtype=torch.float32)[:, None] * inverse
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn dimension pairs (i, i + head_dim / 2) of x [..., heads, head_dim] in float32; the dtype is kept."""
    cosine, sine = rotation
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(x.dtype)


def sinusoidal_table(context_length: int, hidden_size: int) -> Tensor:
    """Fixed position vectors, [context_length, hidden_size]: even dimensions sine, odd cosine (Vaswani et al. 2017)."""
    exponent = torch.arange(0, hidden_size, 2, dtype=torch.float32) / hidden_size
    angles = torch.arange(context_length, dtype=torch.float32)[:, None] * 10_000.0**-exponent
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[:, :hidden_size]


def alibi_slopes(num_heads: int) -> Tensor:
    """One slope per head, [num_heads]: a geometric series from 2^(-8/n) (Press et al. 2022, with its rule for n
    that is no power of two: the series for the next lower power, then every other slope of the one above)."""
    power = 1 << (num_heads.bit_length() - 1)
    base = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    extra = [2.0 ** (-4.0 * (i + 1) / power) for i in range(0, 2 * (num_heads - power), 2)]
    return torch.tensor(base + extra)
