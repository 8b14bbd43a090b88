"""The learning rate over a run."""

from typing import Literal

import pytest

from training.config import ScheduleOptions
from training.schedule import rate_factor


def test_the_rate_rises_linearly_during_warm_up() -> None:
    options = ScheduleOptions(warmup_fraction=0.2)
    assert [rate_factor(options, progress) for progress in (0.0, 0.05, 0.1)] == [0.0, 0.25, 0.5]
    assert rate_factor(options, 0.2) == 1.0


def test_linear_decay_is_a_straight_line_to_the_final_fraction() -> None:
    options = ScheduleOptions(warmup_fraction=0.2, decay="linear", final_fraction=0.1)
    assert rate_factor(options, 0.6) == pytest.approx(0.55)
    assert rate_factor(options, 1.0) == pytest.approx(0.1)


def test_cosine_decay_is_half_way_down_in_the_middle_and_flat_at_both_ends() -> None:
    options = ScheduleOptions(warmup_fraction=0.2, decay="cosine")
    assert rate_factor(options, 0.6) == pytest.approx(0.5)
    assert rate_factor(options, 0.21) > 0.999
    assert rate_factor(options, 0.99) < 0.001


def test_without_decay_the_rate_stays_at_its_peak() -> None:
    options = ScheduleOptions(warmup_fraction=0.0, decay="none")
    assert {rate_factor(options, step / 10) for step in range(11)} == {1.0}


Decay = Literal["linear", "cosine", "none"]
DECAYS: tuple[Decay, ...] = ("linear", "cosine", "none")


@pytest.mark.parametrize("decay", DECAYS)
def test_the_rate_never_leaves_its_range_nor_rises_after_the_warm_up(
    decay: Literal["linear", "cosine", "none"],
) -> None:
    options = ScheduleOptions(warmup_fraction=0.1, decay=decay, final_fraction=0.05)
    factors = [rate_factor(options, step / 1000) for step in range(100, 1101)]
    assert all(0.05 <= factor <= 1.0 for factor in factors)
    assert factors == sorted(factors, reverse=True)
