"""Parameter groups, Muon and clipping."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from training_runs import TINY, TINY_GPT2, TINY_MOE, fresh_model

from model.config import ModelConfig
from training.config import OptimizerOptions
from training.muon import Muon, orthogonalise
from training.optimizers import Optimizers, clip_gradients, group_parameters

CONFIGS = [TINY, TINY_GPT2, TINY_MOE, replace(TINY, tie_embeddings=False), replace(TINY, qk_norm=True)]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_parameter_is_in_exactly_one_group(config: ModelConfig) -> None:
    model = fresh_model(config)
    groups = group_parameters(model)
    grouped = [id(parameter) for parameter, _ in groups.matrices] + [id(other) for other in groups.others]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_the_optimisers_hold_every_parameter_exactly_once(config: ModelConfig, matrices: str) -> None:
    model = fresh_model(config)
    options = OptimizerOptions(matrices="muon" if matrices == "muon" else "adamw")
    held = [
        id(parameter)
        for optimizer in Optimizers(model, options).optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


def test_norms_biases_embeddings_and_routers_are_not_decayed() -> None:
    model = fresh_model(TINY_MOE)
    others = {id(parameter) for parameter in group_parameters(model).others}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in others}
    assert all("norm" in name or "embedding" in name or "router" in name for name in names)
    assert any("router" in name for name in names)


def test_fused_products_are_cut_into_their_maps() -> None:
    model = fresh_model(TINY)
    rows = {rows for _, rows in group_parameters(model).matrices}
    assert rows == {(32, 16, 16), (32,), (48, 48)}  # query-key-value with half the kv heads; out and down; gate-up


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    for stack in (matrices, matrices.mT):
        singular = torch.linalg.svdvals(orthogonalise(stack).float())
        assert singular.min() > 0.6
        assert singular.max() < 1.3


def test_muon_takes_the_same_steps_as_the_library_s() -> None:
    start = torch.randn(24, 40, generator=torch.Generator().manual_seed(1))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    reference = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    muon = Muon([(ours, (24,))], 0.02, 0.9, 0.1)
    for step in range(4):
        gradient = torch.randn(24, 40, generator=torch.Generator().manual_seed(10 + step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        reference.step()
    # Both round to bfloat16 on the way, in different products.
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    assert (ours - start).abs().max() > 0.03


def test_a_stack_of_blocks_is_updated_as_its_matrices_alone() -> None:
    start = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(2))
    gradient = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(3))
    together = nn.Parameter(start.clone())
    together.grad = gradient.clone()
    Muon([(together, (16, 8))], 0.02, 0.9, 0.1).step()
    for expert in range(2):
        for rows in (slice(0, 16), slice(16, 24)):
            alone = nn.Parameter(start[expert, rows].clone())
            alone.grad = gradient[expert, rows].clone()
            Muon([(alone, (alone.shape[0],))], 0.02, 0.9, 0.1).step()
            torch.testing.assert_close(together[expert, rows], alone, atol=1e-4, rtol=0)


def test_muon_refuses_what_is_no_matrix_and_rows_that_do_not_add_up() -> None:
    for parameter, rows in ((nn.Parameter(torch.zeros(4)), (4,)), (nn.Parameter(torch.zeros(4, 4)), (3,))):
        with pytest.raises(ValueError, match="cannot cut"):
            Muon([(parameter, rows)], 0.02, 0.9, 0.1)


def test_clipping_scales_all_gradients_to_the_limit_and_leaves_small_ones() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))]
    parameters[0].grad, parameters[1].grad = torch.full((3,), 2.0), torch.full((4,), 1.0)
    norm = 16**0.5
    assert clip_gradients(parameters, 0.0) == pytest.approx(norm)
    assert clip_gradients(parameters, 5.0) == pytest.approx(norm)
    assert parameters[0].grad[0] == 2.0
    assert clip_gradients(parameters, 1.0) == pytest.approx(norm)
    assert clip_gradients(parameters, 0.0) == pytest.approx(1.0, abs=1e-5)
    assert parameters[0].grad[0] == pytest.approx(2.0 * parameters[1].grad[0].item())


def test_the_rate_factor_scales_every_group_from_its_peak() -> None:
    model = fresh_model(TINY)
    optimizers = Optimizers(model, OptimizerOptions(muon_learning_rate=0.5, learning_rate=0.25))
    for factor in (0.5, 0.1):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizers.step(factor)
        rates = {group["lr"] for optimizer in optimizers.optimizers for group in optimizer.param_groups}
        assert rates == {0.5 * factor, 0.25 * factor}
