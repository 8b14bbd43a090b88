from dataclasses import replace

import torch
from model_cases import MIXTRAL_LIKE
from torch import Tensor

from model.config import ModelConfig
from model.layers import FeedForward
from model.moe import MixtureOfExperts


def random_experts(config: ModelConfig) -> MixtureOfExperts:
    generator = torch.Generator().manual_seed(0)
    experts = MixtureOfExperts(config).requires_grad_(False)
    for parameter in experts.parameters():
        parameter.normal_(0.0, 0.3, generator=generator)
    return experts


def random_rows(count: int) -> Tensor:
    return torch.randn(count, MIXTRAL_LIKE.hidden_size, generator=torch.Generator().manual_seed(1))


def expert_as_layer(experts: MixtureOfExperts, config: ModelConfig, expert: int) -> FeedForward:
    layer = FeedForward(replace(config, num_experts=0, num_experts_per_token=0)).requires_grad_(False)
    layer.up.weight.copy_(experts.up[expert])
    layer.down.weight.copy_(experts.down[expert])
    if experts.up_bias is not None and experts.down_bias is not None:
        assert layer.up.bias is not None
        assert layer.down.bias is not None
        layer.up.bias.copy_(experts.up_bias[expert])
        layer.down.bias.copy_(experts.down_bias[expert])
    return layer


def every_token_through_every_expert(experts: MixtureOfExperts, config: ModelConfig, rows: Tensor) -> Tensor:
    """The definition: softmax over the chosen logits, all others count for nothing."""
    chosen = experts.router(rows).topk(config.num_experts_per_token).indices
    hidden = torch.ones(len(rows), config.num_experts, dtype=torch.bool).scatter(1, chosen, False)
    gates = experts.router(rows).masked_fill(hidden, float("-inf")).softmax(-1)
    outputs = [expert_as_layer(experts, config, index)(rows) for index in range(config.num_experts)]
    return torch.stack([gates[:, index, None] * out for index, out in enumerate(outputs)]).sum(0)


def check_against_definition(config: ModelConfig) -> None:
    experts, rows = random_experts(config), random_rows(33)
    wanted = every_token_through_every_expert(experts, config, rows)
    torch.testing.assert_close(experts(rows)[0], wanted, atol=1e-5, rtol=1e-5)


def test_two_of_four_experts_match_the_definition() -> None:
    check_against_definition(MIXTRAL_LIKE)


def test_one_expert_per_token_matches_the_definition() -> None:
    check_against_definition(replace(MIXTRAL_LIKE, num_experts_per_token=1))


def test_all_experts_per_token_match_the_definition() -> None:
    check_against_definition(replace(MIXTRAL_LIKE, num_experts_per_token=4))


def test_experts_with_biases_and_another_activation_match_the_definition() -> None:
    check_against_definition(replace(MIXTRAL_LIKE, feed_forward="relu", feed_forward_bias=True))


def test_equal_experts_are_one_dense_layer() -> None:
    experts, rows = random_experts(MIXTRAL_LIKE), random_rows(16)
    experts.up.copy_(experts.up[:1].expand_as(experts.up))
    experts.down.copy_(experts.down[:1].expand_as(experts.down))
    dense = expert_as_layer(experts, MIXTRAL_LIKE, 0)(rows)
    torch.testing.assert_close(experts(rows)[0], dense, atol=1e-5, rtol=1e-5)


def test_no_token_is_dropped_when_all_choose_the_same_expert() -> None:
    config = replace(MIXTRAL_LIKE, num_experts_per_token=1)
    experts, rows = random_experts(config), random_rows(40).abs()
    experts.router.weight.zero_()
    experts.router.weight[2] = 1.0
    dense = expert_as_layer(experts, config, 2)(rows)
    torch.testing.assert_close(experts(rows)[0], dense, atol=1e-5, rtol=1e-5)


def test_router_logits_are_reported_with_the_leading_dimensions() -> None:
    experts, rows = random_experts(MIXTRAL_LIKE), random_rows(12)
    out, routing = experts(rows.view(3, 4, -1))
    assert out.shape == (3, 4, MIXTRAL_LIKE.hidden_size)
    assert torch.equal(routing.flatten(0, 1), experts.router(rows))


def test_a_tokens_output_does_not_depend_on_its_batch_mates() -> None:
    # Heights that are multiples of the row tile, where library products are exact.
    experts, rows = random_experts(MIXTRAL_LIKE), random_rows(64)
    together = experts(rows)[0]
    for start in range(0, 64, 8):
        assert torch.equal(experts(rows[start : start + 8])[0], together[start : start + 8])
