"""Sparse mixture of experts: each token goes to its top experts and none is ever dropped."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.kernels import Product, padding
from model.layers import ACTIVATIONS, Activation, Linear


class MixtureOfExperts(nn.Module):
    """Top-k routing over feed-forward experts (Mixtral: Jiang et al. 2024).

    The gate weights are the softmax over the chosen experts' logits. A token's experts are combined in order of
    their rank, so the sum does not depend on which tokens share the batch.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.intermediate_size * (2 if config.feed_forward == "swiglu" else 1)
        self.num_experts_per_token = config.num_experts_per_token
        self.router = Linear(config.hidden_size, config.num_experts, bias=False)
        self.up = nn.Parameter(torch.empty(config.num_experts, width, config.hidden_size))
        self.down = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, config.intermediate_size))
        bias = config.feed_forward_bias
        self.up_bias = nn.Parameter(torch.empty(config.num_experts, width)) if bias else None
        self.down_bias = nn.Parameter(torch.empty(config.num_experts, config.hidden_size)) if bias else None
        self.activation: Activation = ACTIVATIONS[config.feed_forward]
        self.product: Product = F.linear

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the output [..., hidden] and the router's logits [..., experts] in float32."""
        rows = x.flatten(0, -2)  # [tokens, hidden]
        logits = self.router(rows).float()  # [tokens, experts]
        top_logits, experts = logits.topk(self.num_experts_per_token, dim=-1)  # [tokens, chosen]
        gates = top_logits.softmax(-1).to(x.dtype)
        outputs = self._run_experts(rows, experts)  # [tokens, chosen, hidden]
        weighted = outputs * gates.unsqueeze(-1)
        combined = weighted[:, 0]
        for slot in range(1, self.num_experts_per_token):
            combined = combined + weighted[:, slot]
        return combined.view_as(x), logits.view(*x.shape[:-1], -1)

    def _run_experts(self, rows: Tensor, experts: Tensor) -> Tensor:
        order = experts.flatten().argsort(stable=True)  # assignments grouped by expert
        counts = experts.flatten().bincount(minlength=self.up.shape[0]).tolist()
        grouped = [
            self._expert(expert, rows, assigned // self.num_experts_per_token)
            for expert, assigned in enumerate(torch.split(order, counts))
            if len(assigned)
        ]
        restored = torch.cat(grouped)[order.argsort()]
        return restored.view(*experts.shape, -1)

    def _expert(self, expert: int, rows: Tensor, members: Tensor) -> Tensor:
        # Whole row tiles, as everywhere: see kernels.ROW_TILE. The padding repeats row 0 and is cut off again.
        mine = rows[F.pad(members, (0, padding(len(members))))]
        up_bias = None if self.up_bias is None else self.up_bias[expert]
        down_bias = None if self.down_bias is None else self.down_bias[expert]
        hidden = self.activation(self.product(mine, self.up[expert], up_bias))
        return self.product(hidden, self.down[expert], down_bias)[: len(members)]
