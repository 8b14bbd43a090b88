from dataclasses import replace

import pytest
import torch
from model_cases import EVERY, PLAIN, logits, random_model, random_tokens
from torch import Tensor

from model.attention import (
    alibi_bias,
    attention_weights,
    causal_attend,
    causal_fused_attend,
    explicit_attention,
    fused_attention,
    visible_keys,
)
from model.config import ModelConfig
from model.gpt import GPT
from model.positions import alibi_slopes


def heads(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def as_rows(visible: Tensor) -> list[str]:
    return ["".join("x" if seen else "." for seen in row) for row in visible.tolist()]


def test_four_tokens_see_themselves_and_earlier_ones() -> None:
    positions = torch.arange(4)
    assert as_rows(visible_keys(positions, positions, None)) == ["x...", "xx..", "xxx.", "xxxx"]


def test_four_tokens_with_a_window_of_two_see_one_neighbour() -> None:
    positions = torch.arange(4)
    assert as_rows(visible_keys(positions, positions, 2)) == ["x...", "xx..", ".xx.", "..xx"]


def test_a_window_of_one_leaves_only_the_token_itself() -> None:
    positions = torch.arange(4)
    assert as_rows(visible_keys(positions, positions, 1)) == ["x...", ".x..", "..x.", "...x"]


def test_the_last_two_of_four_tokens_have_the_last_two_rows() -> None:
    assert as_rows(visible_keys(torch.tensor([2, 3]), torch.arange(4), None)) == ["xxx.", "xxxx"]


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("alibi", [False, True])
def test_weights_of_hidden_keys_are_exactly_zero_and_rows_sum_to_one(window: int | None, alibi: bool) -> None:
    positions = torch.arange(9)
    visible = visible_keys(positions, positions, window)
    bias = alibi_bias(alibi_slopes(3), positions, positions) if alibi else None
    weights = attention_weights(10 * heads(2, 3, 9, 8), 10 * heads(2, 3, 9, 8, seed=1), visible, bias)
    assert weights.shape == (2, 3, 9, 9)
    assert torch.equal(weights.masked_select(~visible), torch.zeros(2 * 3 * int((~visible).sum())))
    assert torch.equal(weights.triu(1), torch.zeros_like(weights))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 9))


def test_equal_keys_share_the_weight_of_four_tokens_equally() -> None:
    positions = torch.arange(4)
    weights = attention_weights(
        heads(1, 1, 4, 8), torch.ones(1, 1, 4, 8), visible_keys(positions, positions, None), None
    )
    wanted = torch.tensor([[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [1 / 4, 1 / 4, 1 / 4, 1 / 4]])
    torch.testing.assert_close(weights[0, 0], wanted)


def test_scores_are_scaled_by_the_root_of_the_head_dimension() -> None:
    query, key = torch.tensor([[[[0.0], [3.0]]]]), torch.tensor([[[[1.0], [2.0]]]])
    query, key = query.expand(1, 1, 2, 4), key.expand(1, 1, 2, 4)
    positions = torch.arange(2)
    weights = attention_weights(query, key, visible_keys(positions, positions, None), None)
    # Products 3 * 1 * 4 and 3 * 2 * 4, halved.
    torch.testing.assert_close(weights[0, 0, 1], torch.tensor([6.0, 12.0]).softmax(0))


def test_alibi_penalises_distance_by_the_slope_of_the_head() -> None:
    bias = alibi_bias(torch.tensor([0.5, 0.25]), torch.tensor([3]), torch.arange(4))
    assert bias.tolist() == [[[-1.5, -1.0, -0.5, 0.0]], [[-0.75, -0.5, -0.25, 0.0]]]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("alibi", [False, True])
def test_explicit_attention_equals_the_fused_call(kv_heads: int, window: int | None, alibi: bool) -> None:
    query, key, value = heads(2, 4, 11, 8), heads(2, kv_heads, 11, 8, seed=1), heads(2, kv_heads, 11, 8, seed=2)
    positions = torch.arange(11)
    visible = visible_keys(positions, positions, window)
    bias = alibi_bias(alibi_slopes(4), positions, positions) if alibi else None
    explicit = explicit_attention(query, key, value, visible, bias)
    torch.testing.assert_close(explicit, fused_attention(query, key, value, visible, bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_whole_models_agree_over_explicit_and_fused_attention(name: str) -> None:
    config = EVERY[name]
    model, tokens = random_model(config), random_tokens(config, 2, 20)
    wanted = logits(model, tokens)
    for attend in (
        causal_attend(config, 20, torch.device("cpu"), fused_attention),
        causal_fused_attend(config, 20, torch.device("cpu")),
    ):
        with torch.inference_mode():
            hidden = model(tokens, torch.arange(20), attend)
        torch.testing.assert_close(model.unembed(hidden), wanted, atol=1e-4, rtol=1e-4)


def test_grouped_heads_equal_full_heads_with_repeated_keys_and_values() -> None:
    query, key, value = heads(1, 4, 6, 8), heads(1, 2, 6, 8, seed=1), heads(1, 2, 6, 8, seed=2)
    positions = torch.arange(6)
    visible = visible_keys(positions, positions, None)
    repeated = (x[:, [0, 0, 1, 1]] for x in (key, value))
    grouped = explicit_attention(query, key, value, visible, None)
    assert torch.equal(grouped, explicit_attention(query, *repeated, visible, None))


def test_a_window_as_long_as_the_text_hides_nothing() -> None:
    model = random_model(PLAIN)
    tokens = random_tokens(PLAIN, 1, 12)
    windowed = with_config(model, replace(PLAIN, sliding_window=12))
    shorter = with_config(model, replace(PLAIN, sliding_window=11))
    assert torch.equal(logits(windowed, tokens), logits(model, tokens))
    assert not torch.equal(logits(shorter, tokens), logits(model, tokens))


def test_a_token_beyond_the_window_does_not_reach_a_single_layer() -> None:
    model = random_model(replace(PLAIN, num_layers=1, sliding_window=4))
    tokens = random_tokens(PLAIN, 1, 12)
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % PLAIN.vocab_size
    differs = (logits(model, changed) != logits(model, tokens)).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [5, 6, 7, 8]


def with_config(model: GPT, config: ModelConfig) -> GPT:
    other = random_model(config)
    other.load_state_dict(model.state_dict())
    return other
