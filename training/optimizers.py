"""Which parameter is optimised by what: the groups, and the optimisers over them. Knows no data and no loop."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from model.gpt import GPT
from model.layers import FeedForward, SelfAttention
from model.moe import MixtureOfExperts
from training.config import OptimizerOptions
from training.muon import Muon

# A parameter with the heights of the maps that are stacked in its rows.
Matrix = tuple[nn.Parameter, tuple[int, ...]]


@dataclass(frozen=True)
class ParameterGroups:
    """Every parameter of a model exactly once, tied ones included."""

    matrices: tuple[Matrix, ...]  # the products inside the layers: weight decay, and Muon where asked for
    others: tuple[nn.Parameter, ...]  # embeddings, output projection, routers, norms, biases: AdamW without decay


def group_parameters(model: GPT) -> ParameterGroups:
    """Sorts the parameters of `model`.

    Routers are matrices too, but with a row per expert: making those orthogonal would force every expert to have the
    same weight in the choice.
    """
    matrices = tuple(matrix for module in model.modules() for matrix in _matrices(module))
    taken = {id(parameter) for parameter, _ in matrices}
    return ParameterGroups(matrices, tuple(other for other in model.parameters() if id(other) not in taken))


def _matrices(module: nn.Module) -> Iterator[Matrix]:
    if isinstance(module, SelfAttention):
        yield module.qkv.weight, tuple(heads * module.head_dim for heads in module.heads)
        yield _whole(module.out.weight)
    elif isinstance(module, FeedForward):
        yield _gate_and_up(module.up.weight, module.down.weight)
        yield _whole(module.down.weight)
    elif isinstance(module, MixtureOfExperts):
        yield _gate_and_up(module.up, module.down)
        yield _whole(module.down)


def _whole(parameter: nn.Parameter) -> Matrix:
    return parameter, (parameter.shape[-2],)


def _gate_and_up(up: nn.Parameter, down: nn.Parameter) -> Matrix:
    """SwiGLU stacks two maps in the rows of `up`; the width of `down` tells."""
    width = down.shape[-1]
    return up, (width,) * (up.shape[-2] // width)


class Optimizers:
    """The optimisers of one run, stepped together, their rates set by one factor."""

    def __init__(self, model: GPT, options: OptimizerOptions) -> None:
        self.max_grad_norm = options.max_grad_norm
        self.parameters = list(model.parameters())
        self.optimizers = list(_build(group_parameters(model), options))
        self.peaks = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in self.optimizers]

    def step(self, factor: float) -> float:
        """Clip the gradients, update with `factor` times the peak rates, drop the gradients; returns their norm."""
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
        norm = clip_gradients(self.parameters, self.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return norm

    def state_dicts(self) -> list[dict[str, object]]:
        """Everything `load_state_dicts` needs to go on."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dicts(self, states: list[dict[str, object]]) -> None:
        """Take over what `state_dicts` gave for the same model and options."""
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients down to the global norm `max_norm` (0: leave them); returns the norm they had."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    if max_norm > 0:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)


def _build(groups: ParameterGroups, options: OptimizerOptions) -> Iterator[Optimizer]:
    decayed: list[nn.Parameter] = []
    if options.matrices == "muon":
        rate = options.muon_learning_rate
        yield Muon(groups.matrices, rate, options.momentum, options.weight_decay)
    else:
        decayed = [parameter for parameter, _ in groups.matrices]
    yield AdamW(
        [
            {"params": decayed, "weight_decay": options.weight_decay},
            {"params": list(groups.others), "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        fused=True,
    )
