import math

import pytest
import torch

from model.positions import PositionTable, alibi_slopes, rotary_table, rotate, sinusoidal_table


def test_rotation_turns_pairs_by_position_times_frequency() -> None:
    table = PositionTable(rotary_table(8, 4, 100.0))
    cosine, sine = table.rows(torch.tensor([3])).unsqueeze(-2).unbind(-3)
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    expected = []
    for pair, frequency in enumerate((1.0, 0.1)):
        angle = 3 * frequency
        expected.append(complex(x[0, 0, pair], x[0, 0, pair + 2]) * complex(math.cos(angle), math.sin(angle)))
    wanted = torch.tensor([*(z.real for z in expected), *(z.imag for z in expected)])
    torch.testing.assert_close(rotate(x, (cosine, sine))[0, 0], wanted)


def test_rotated_products_depend_on_distance_only() -> None:
    table = PositionTable(rotary_table(64, 8, 10_000.0))
    query, key = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def product(query_position: int, key_position: int) -> float:
        turned = []
        for x, position in ((query, query_position), (key, key_position)):
            cosine, sine = table.rows(torch.tensor([position])).unsqueeze(-2).unbind(-3)
            turned.append(rotate(x, (cosine, sine)))
        return float((turned[0] * turned[1]).sum())

    assert product(12, 5) == pytest.approx(product(52, 45), abs=1e-5)
    assert product(12, 5) != pytest.approx(product(12, 6), abs=1e-3)


def test_rotation_keeps_the_dtype() -> None:
    cosine, sine = PositionTable(rotary_table(4, 8, 1e4)).rows(torch.arange(4)).unsqueeze(-2).unbind(-3)
    assert rotate(torch.ones(4, 2, 8, dtype=torch.bfloat16), (cosine, sine)).dtype == torch.bfloat16


def test_sinusoids_follow_the_published_formula() -> None:
    table = sinusoidal_table(5, 6)
    for position in range(5):
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            assert float(table[position, 2 * pair]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[position, 2 * pair + 1]) == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16])
def test_alibi_slopes_of_powers_of_two_are_a_geometric_series(heads: int) -> None:
    assert alibi_slopes(heads).tolist() == pytest.approx([2 ** (-8 * (head + 1) / heads) for head in range(heads)])


def test_alibi_slopes_of_other_counts_take_every_other_slope_of_the_next_power() -> None:
    slopes = alibi_slopes(6).tolist()
    assert slopes[:4] == alibi_slopes(4).tolist()
    assert slopes[4:] == pytest.approx(alibi_slopes(8).tolist()[0:4:2])
