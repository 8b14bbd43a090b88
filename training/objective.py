"""One forward pass and its loss, the same for training and evaluation. Knows no optimiser and no schedule."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.gpt import GPT, ObserveRouting, ignore_routing
from training.attention import training_attend
from training.config import LossOptions
from training.dataset import Batch
from training.losses import RoutingLosses, agreement, distillation_loss, token_loss


@dataclass(frozen=True)
class Routing:
    """What the routers did in one forward pass, without gradients."""

    losses: Tensor  # [2]: balance, z
    expert_load: Tensor  # assignments, [layers, experts]


@dataclass(frozen=True)
class Losses:
    """The losses of one forward pass, scalars."""

    tokens: Tensor  # nats per token: mean cross-entropy, or the mean divergence from a target
    total: Tensor  # with the router losses: what is minimised
    routing: Routing | None = None
    agreement: Tensor | None = None  # share of tokens on which the target's first choice is the model's; no gradient


class Objective:
    """The loss of `model` on batches, in the run's precision: against the text, or against a `target`'s logits."""

    def __init__(self, model: GPT, options: LossOptions, precision: torch.dtype, target: GPT | None = None) -> None:
        self.model = model
        self.target = target
        self.options = options
        self.precision = precision
        self.device = model.embedding.weight.device

    def losses(self, batch: Batch) -> Losses:
        """Forward pass over a batch, gradients recorded unless torch was told otherwise."""
        inputs = batch.inputs.to(self.device)
        config = self.model.config
        routing = RoutingLosses(config.num_experts_per_token)
        logits = self._logits(self.model, inputs, routing.observe)
        tokens, agreed = self._token_loss(logits, batch)
        if not config.num_experts:
            return Losses(tokens, tokens, agreement=agreed)
        balance, router_z = routing.mean_balance(), routing.mean_router_z()
        total = tokens + self.options.balance * balance + self.options.router_z * router_z
        return Losses(tokens, total, Routing(torch.stack((balance, router_z)).detach(), routing.load()), agreed)

    def _token_loss(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The loss per token and, with a target, the agreement. A target makes the tokens that follow irrelevant."""
        if self.target is None:
            return token_loss(logits, batch.targets.to(self.device)), None
        if batch.target_logits is not None:
            target_logits = batch.target_logits.to(self.device).float()
        else:
            with torch.no_grad():
                target_logits = self._logits(self.target, batch.inputs.to(self.device), ignore_routing)
        return distillation_loss(logits, target_logits), agreement(logits.detach(), target_logits)

    def _logits(self, model: GPT, inputs: Tensor, observe: ObserveRouting) -> Tensor:
        length = inputs.shape[-1]
        attend = training_attend(model.config, length, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            hidden = model(inputs, torch.arange(length, device=self.device), attend, observe)
            return model.unembed(hidden)
