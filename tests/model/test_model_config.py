from dataclasses import FrozenInstanceError, replace

import pytest
from model_cases import MIXTRAL_LIKE, PLAIN

from model.config import LIMITS, ConfigError


@pytest.mark.parametrize("field", sorted(LIMITS))
@pytest.mark.parametrize("wrong", ["zero", "beyond", "text", "fraction", "true"])
def test_sizes_outside_their_limits_are_refused_by_name(field: str, wrong: str) -> None:
    value = {"zero": 0, "beyond": LIMITS[field] + 1, "text": "8", "fraction": 8.0, "true": True}[wrong]
    with pytest.raises(ConfigError, match=field):
        replace(PLAIN, **{field: value})


def test_query_heads_must_be_a_multiple_of_kv_heads() -> None:
    with pytest.raises(ConfigError, match="num_heads 4 is not a multiple of num_kv_heads 3"):
        replace(PLAIN, num_kv_heads=3)


def test_rotary_positions_need_an_even_head_dim() -> None:
    with pytest.raises(ConfigError, match="head_dim 7"):
        replace(PLAIN, head_dim=7)
    assert replace(PLAIN, head_dim=7, positions="alibi").head_dim == 7


@pytest.mark.parametrize("window", [0, -1, LIMITS["context_length"] + 1])
def test_a_sliding_window_must_hold_a_token(window: int) -> None:
    with pytest.raises(ConfigError, match="sliding_window"):
        replace(PLAIN, sliding_window=window)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_experts": -1}, "num_experts"),
        ({"num_experts": 1_000_000}, "num_experts"),
        ({"num_experts_per_token": 0}, "num_experts_per_token"),
        ({"num_experts_per_token": 5}, "num_experts_per_token"),
    ],
)
def test_experts_outside_their_limits_are_refused_by_name(changes: dict[str, int], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(MIXTRAL_LIKE, **changes)


def test_a_dense_model_has_no_experts_per_token() -> None:
    with pytest.raises(ConfigError, match="num_experts_per_token"):
        replace(PLAIN, num_experts_per_token=1)


@pytest.mark.parametrize("field", ["norm_epsilon", "rope_theta"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_real_fields_must_be_positive_and_finite(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(PLAIN, **{field: value})


def test_groups_are_query_heads_per_kv_head() -> None:
    heads = {kv_heads: replace(PLAIN, num_kv_heads=kv_heads).num_groups for kv_heads in (1, 2, 4)}
    assert heads == {1: 4, 2: 2, 4: 1}


def test_a_configuration_cannot_be_written_to() -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(PLAIN, "num_layers", 3)  # noqa: B010, so that the type checker lets the test write


@pytest.mark.parametrize("field", ["norm", "norm_placement", "positions", "feed_forward"])
def test_an_unknown_kind_is_refused_with_the_known_ones(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is 'nonsense'; it must be one of "):
        replace(PLAIN, **{field: "nonsense"})
