"""One forward pass and its loss, the same for training and evaluation. Knows no optimiser and no schedule."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.gpt import GPT
from training.attention import training_attend
from training.config import LossOptions
from training.dataset import Batch
from training.losses import RoutingLosses, token_loss


@dataclass(frozen=True)
class Routing:
    """What the routers did in one forward pass, without gradients."""

    losses: Tensor  # [2]: balance, z
    expert_load: Tensor  # assignments, [layers, experts]


@dataclass(frozen=True)
class Losses:
    """The losses of one forward pass, scalars."""

    tokens: Tensor  # mean cross-entropy in nats per token
    total: Tensor  # with the router losses: what is minimised
    routing: Routing | None = None


class Objective:
    """The loss of `model` on batches, in the run's precision."""

    def __init__(self, model: GPT, options: LossOptions, precision: torch.dtype) -> None:
        self.model = model
        self.options = options
        self.precision = precision
        self.device = model.embedding.weight.device

    def losses(self, batch: Batch) -> Losses:
        """Forward pass over a batch, gradients recorded unless torch was told otherwise."""
        inputs, targets = batch.inputs.to(self.device), batch.targets.to(self.device)
        config, length = self.model.config, inputs.shape[-1]
        routing = RoutingLosses(config.num_experts_per_token)
        positions = torch.arange(length, device=self.device)
        attend = training_attend(config, length, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            hidden = self.model(inputs, positions, attend, routing.observe)
            logits = self.model.unembed(hidden)
        tokens = token_loss(logits, targets)
        if not config.num_experts:
            return Losses(tokens, tokens)
        balance, router_z = routing.mean_balance(), routing.mean_router_z()
        total = tokens + self.options.balance * balance + self.options.router_z * router_z
        return Losses(tokens, total, Routing(torch.stack((balance, router_z)).detach(), routing.load()))
