"""The router losses and the forward pass that training minimises."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_runs import TINY, TINY_GPT2, TINY_MOE, fresh_model

from model.attention import causal_attend, explicit_attention
from model.config import ModelConfig
from training.attention import training_attend
from training.config import LossOptions
from training.dataset import Batch, cut
from training.evaluate import validate
from training.losses import RoutingLosses, balance_loss, expert_counts, router_z_loss
from training.objective import Objective
from training.parallel import Alone

CPU = torch.device("cpu")


def some_batch(vocab_size: int, sequences: int = 3, length: int = 16) -> Batch:
    tokens = np.random.default_rng(0).integers(vocab_size, size=sequences * length + 1).astype(np.int32)
    return cut(tokens, np.arange(sequences) * length, length)


def test_the_balance_loss_is_that_of_an_example_by_hand() -> None:
    # Three tokens, two experts, one each: expert 0 gets tokens 0 and 1. Softmax of (log 3, 0) is (3/4, 1/4).
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0], [0.0, math.log(3)]])
    mean_probability = ((3 / 4 + 3 / 4 + 1 / 4) / 3, (1 / 4 + 1 / 4 + 3 / 4) / 3)
    expected = 2 * (2 / 3 * mean_probability[0] + 1 / 3 * mean_probability[1])
    assert balance_loss(logits, 1).item() == pytest.approx(expected)
    assert expert_counts(logits, 1).tolist() == [2, 1]


def test_the_z_loss_is_that_of_an_example_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    assert router_z_loss(logits).item() == pytest.approx((math.log(4) ** 2 + math.log(2) ** 2) / 2)


@pytest.mark.parametrize("chosen", [1, 2])
def test_an_even_load_costs_one_and_a_collapsed_one_more(chosen: int) -> None:
    even = torch.eye(4).repeat(5, 1) * 1e-4 + torch.eye(4).roll(1, 0).repeat(5, 1) * 5e-5
    collapsed = torch.tensor([[9.0, 8.0, 0.0, 0.0]]).repeat(20, 1)
    assert balance_loss(even, chosen).item() == pytest.approx(1.0, abs=1e-3)
    assert balance_loss(collapsed, chosen).item() > 1.9


def test_routing_losses_are_means_over_layers_and_count_every_assignment() -> None:
    routing = RoutingLosses(num_experts_per_token=2)
    first, second = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    routing.observe(0, first)
    routing.observe(1, second)
    flat = [logits.flatten(0, 1) for logits in (first, second)]
    assert routing.mean_balance() == torch.stack([balance_loss(rows, 2) for rows in flat]).mean()
    assert routing.mean_router_z() == torch.stack([router_z_loss(rows) for rows in flat]).mean()
    assert routing.load().sum(-1).tolist() == [20, 20]


def test_the_total_is_the_token_loss_and_the_weighted_router_losses() -> None:
    objective = Objective(fresh_model(TINY_MOE), LossOptions(balance=0.5, router_z=0.25), torch.float32)
    losses = objective.losses(some_batch(TINY_MOE.vocab_size))
    assert losses.routing is not None
    balance, router_z = losses.routing.losses.tolist()
    assert losses.total.item() == pytest.approx(losses.tokens.item() + 0.5 * balance + 0.25 * router_z)
    assert losses.routing.expert_load.shape == (2, 4)


def test_the_balance_loss_evens_out_a_skewed_router() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 32, generator=generator) + 0.5
    weight = torch.nn.Parameter(torch.randn(4, 32, generator=generator) * 0.02)
    weight.data[0] += 0.2  # nearly every row prefers expert 0
    optimizer = torch.optim.SGD([weight], lr=0.02)
    before = expert_counts(rows @ weight.detach().T, 1)
    for _ in range(200):
        optimizer.zero_grad()
        torch.autograd.backward(balance_loss(rows @ weight.T, 1))
        optimizer.step()
    after = expert_counts(rows @ weight.detach().T, 1)
    assert before.max() > 150
    assert after.max() < 100


@pytest.mark.parametrize("config", [TINY, TINY_GPT2, replace(TINY, num_kv_heads=1), replace(TINY, positions="alibi")])
def test_batched_attention_is_the_written_out_one_in_value_and_gradient(config: ModelConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 9, heads, 8) for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    parts = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    ours = training_attend(config, 9, CPU)(0, *parts)
    theirs = causal_attend(config, 9, CPU, explicit_attention)(0, *parts)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape, generator=generator)
    ours_gradients = torch.autograd.grad((ours * weight).sum(), parts)
    theirs_gradients = torch.autograd.grad((theirs * weight).sum(), parts)
    torch.testing.assert_close(ours_gradients, theirs_gradients)


def test_bfloat16_losses_are_close_to_float32_ones() -> None:
    model = fresh_model(TINY)
    batch = some_batch(TINY.vocab_size)
    exact = Objective(model, LossOptions(), torch.float32).losses(batch).tokens.item()
    rounded = Objective(model, LossOptions(), torch.bfloat16).losses(batch).tokens.item()
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)


def test_the_validation_loss_is_the_mean_over_tokens_one_window_at_a_time() -> None:
    model = fresh_model(TINY)
    objective = Objective(model, LossOptions(), torch.float32)
    tokens = np.random.default_rng(1).integers(TINY.vocab_size, size=75).astype(np.int32)
    total = 0.0
    for first in range(0, 74, 16):
        length = min(16, 74 - first)
        total += objective.losses(cut(tokens, np.array([first]), length)).tokens.item() * length
    assert validate(objective, tokens, 3, Alone()).loss == pytest.approx(total / 74, rel=1e-6)
    assert model.training
