"""Causal attention for training: batched products over whole sequences. Knows no cache."""

from functools import partial

import torch
from torch import Tensor

from model.attention import causal_fused_attend
from model.config import ModelConfig
from model.gpt import Attend


def training_attend(config: ModelConfig, length: int, device: torch.device) -> Attend:
    """The fastest causal `Attend` over sequences [batch, length, ...] that has a gradient.

    On CPUs the library's fused attention spends three to four times as long in bfloat16 as plain batched products
    with a materialised score matrix, nearly all of it in its backward pass (torch 2.13, contexts up to 256). The fused
    call stays for accelerators and for the variants that need more than a triangular mask.
    """
    if device.type != "cpu" or config.positions == "alibi" or config.sliding_window is not None:
        return causal_fused_attend(config, length, device)
    hidden = torch.full((length, length), float("-inf")).triu(1)  # [queries, keys], added to the scores
    # The queries of a group of heads stand below one another, so that each key head is multiplied once.
    return partial(_attend_batched, hidden.repeat(config.num_groups, 1))


def _attend_batched(hidden: Tensor, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    batch, length, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[-2]
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # [batch, heads, length, head_dim]
    query = query.reshape(batch * num_kv_heads, -1, head_dim)  # [batch * kv_heads, groups * length, head_dim]
    key, value = (part.reshape(batch * num_kv_heads, length, head_dim) for part in (key, value))
    scores = torch.baddbmm(hidden.to(query.dtype), query, key.transpose(1, 2), alpha=head_dim**-0.5)
    # The softmax sums in float32 inside; autocast would also store its result in float32, at twice the memory traffic.
    with torch.autocast(query.device.type, enabled=False):
        weights = scores.softmax(dim=-1)
    out = torch.bmm(weights, value)
    return out.view(batch, num_heads, length, head_dim).transpose(1, 2)
