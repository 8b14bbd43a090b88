"""What training minimises: cross-entropy or the distance to a target, and the losses of routers. Knows no optimiser."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats; logits [..., vocab], targets [...]."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def distillation_loss(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the student from the target, KL(target || student), in nats; both
    [..., vocab].

    At temperature 1 and over the whole vocabulary (Hinton et al. 2015; for drafts, Zhou et al. 2024, DistillSpec).
    """
    student, target = (each.flatten(0, -2).log_softmax(dim=-1) for each in (logits, target_logits))
    return F.kl_div(student, target, reduction="batchmean", log_target=True)


def agreement(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Share of positions at which student and target prefer the same token; both [..., vocab]."""
    return (logits.argmax(dim=-1) == target_logits.argmax(dim=-1)).float().mean()


def expert_counts(logits: Tensor, num_experts_per_token: int) -> Tensor:
    """Tokens sent to each expert, [experts]; logits [..., experts]."""
    chosen = logits.topk(num_experts_per_token, dim=-1).indices
    return chosen.flatten().bincount(minlength=logits.shape[-1])


def balance_loss(logits: Tensor, num_experts_per_token: int) -> Tensor:
    """Experts times the sum over experts of (share of assignments) * (mean probability); logits [tokens, experts].

    1 when both are uniform, up to the number of experts when one expert takes all (Fedus et al. 2022, eq. 4 to 6;
    for several experts per token the shares are divided by their number). Only the probability has a gradient.
    """
    num_experts = logits.shape[-1]
    counts = expert_counts(logits, num_experts_per_token)
    share = counts / counts.sum()
    probability = logits.softmax(dim=-1).mean(dim=0)
    return num_experts * (share * probability).sum()


def router_z_loss(logits: Tensor) -> Tensor:
    """Mean squared log-sum-exp of the router's logits [tokens, experts], which keeps them small (Zoph et al. 2022)."""
    return logits.logsumexp(dim=-1).square().mean()


@dataclass
class RoutingLosses:
    """Collects the routers' losses of one forward pass; `observe` is the model's ObserveRouting."""

    num_experts_per_token: int
    balance: list[Tensor] = field(default_factory=list)  # one scalar per layer
    router_z: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)  # one [experts] per layer

    def observe(self, layer: int, logits: Tensor) -> None:
        """Take in the router logits [..., experts] of one layer."""
        rows = logits.flatten(0, -2).float()
        self.balance.append(balance_loss(rows, self.num_experts_per_token))
        self.router_z.append(router_z_loss(rows))
        self.counts.append(expert_counts(rows.detach(), self.num_experts_per_token))

    def mean_balance(self) -> Tensor:
        """The balance loss averaged over layers."""
        return torch.stack(self.balance).mean()

    def mean_router_z(self) -> Tensor:
        """The z-loss averaged over layers."""
        return torch.stack(self.router_z).mean()

    def load(self) -> Tensor:
        """Assignments [layers, experts]."""
        return torch.stack(self.counts)
