"""Muon: momentum, made orthogonal, for the weight matrices inside a transformer. Knows no model and no schedule."""

import math
from collections.abc import Callable, Sequence
from typing import overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# The quintic of Jordan et al. 2024 ("Muon: An optimizer for hidden layers"): steepest at zero, so that five steps lift
# small singular values to between 0.7 and 1.2, which serves as well as exactly 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_STEPS = 5
# Root mean square of an update's entries at rate 1, so that a rate means about what AdamW's does (Liu et al. 2025).
UPDATE_SCALE = 0.2

# Parameters, each with the heights of the maps that are stacked in its rows.
Blocks = Sequence[tuple[nn.Parameter, tuple[int, ...]]]


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1, [stack, rows, columns] bfloat16.

    By Newton-Schulz steps, products only: cheap where a singular value decomposition is not.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # the largest singular value is then at most 1
    for _ in range(NUM_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) with decoupled weight decay, over parameters [rows, columns] or [stack, rows, columns].

    Differs from torch.optim.Muon where it pays here: parameters of one shape share batched products (half the time for
    many small matrices), stacks of experts are allowed, and a product that fuses several maps, such as
    query-key-value, is cut along its rows so that each map is made orthogonal by itself.
    """

    def __init__(self, blocks: Blocks, lr: float, momentum: float, weight_decay: float) -> None:
        alike: dict[tuple[torch.Size, tuple[int, ...]], list[nn.Parameter]] = {}
        for parameter, rows in blocks:
            if parameter.ndim not in (2, 3) or sum(rows) != parameter.shape[-2]:
                raise ValueError(f"Muon cannot cut a parameter of shape {tuple(parameter.shape)} into rows {rows}")
            alike.setdefault((parameter.shape, rows), []).append(parameter)
        groups = [{"params": parameters, "rows": rows} for (_, rows), parameters in alike.items()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter by its gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            parameters = group["params"]
            directions = _orthogonal_blocks(self._momentum(parameters, group["momentum"]), group["rows"])
            torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, list(directions.unbind()), alpha=-group["lr"])
        return loss

    def _momentum(self, parameters: list[nn.Parameter], decay: float) -> Tensor:
        """Advance the running means and return Nesterov's look ahead, [parameters, ..., rows, columns]."""
        gradients = [_gradient(parameter) for parameter in parameters]
        means = [self._mean(parameter) for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1.0 - decay)
        return torch.stack(gradients).lerp_(torch.stack(means), decay)

    def _mean(self, parameter: nn.Parameter) -> Tensor:
        state: dict[str, Tensor] = self.state[parameter]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(parameter)
        return state["mean"]


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every parameter takes part in every forward pass"
    return parameter.grad


def _orthogonal_blocks(matrices: Tensor, rows: tuple[int, ...]) -> Tensor:
    """Each block of rows made orthogonal and scaled; [..., rows, columns] in and out."""
    columns = matrices.shape[-1]
    if len(set(rows)) == 1:  # equal blocks go through one batched product
        blocks = [matrices.reshape(-1, rows[0], columns)]
    else:
        blocks = [block.reshape(-1, block.shape[-2], columns) for block in torch.split(matrices, list(rows), dim=-2)]
    done = [orthogonalise(block).float() * (UPDATE_SCALE * math.sqrt(max(block.shape[-2:]))) for block in blocks]
    if len(done) == 1:
        return done[0].reshape(matrices.shape)
    lead = matrices.shape[:-2]
    return torch.cat([block.view(*lead, -1, columns) for block in done], dim=-2)
