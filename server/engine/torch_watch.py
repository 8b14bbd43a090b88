"""Watches a forward pass of torch: computes beside the model, from what its observers are handed.

What the model itself computes stays as it is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.attention import alibi_bias, attention_weights, visible_keys
from model.config import ModelConfig
from model.gpt import Attend, ObserveRouting
from model.paged import KVCache
from model.positions import alibi_slopes
from server.engine.tracing_inside import View


def watch_routing(views: Sequence[View], config: ModelConfig) -> ObserveRouting:
    """Observes the routing of a forward pass for the tokens of `views`."""
    rows = [view.row for view in views]

    def observe(layer: int, logits: Tensor) -> None:
        top_logits, experts = logits.topk(config.num_experts_per_token, dim=-1)  # [rows, chosen], as the model does
        weights = top_logits[rows].softmax(-1).tolist()
        for view, chosen, own in zip(views, experts[rows].tolist(), weights, strict=True):
            view.routed(chosen, own)

    return observe


def watch_attention(views: Sequence[View], attend: Attend, cache: KVCache, config: ModelConfig) -> Attend:
    """`attend`, watched: it stores the step's keys in `cache`, and then they are looked at there."""

    def watched_attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = attend(layer, query, key, value)
        for view in views:
            view.attended(paged_weights(query[view.row], cache.keys[layer], view, config).cpu().numpy())
        return out

    return watched_attend


def paged_weights(query: Tensor, keys: Tensor, view: View, config: ModelConfig) -> Tensor:
    """How much a token attends to each so far, itself included: [heads, position + 1] float32, rows sum to 1.

    query [heads, head_dim], keys [kv_heads, blocks, 16, head_dim] of the whole cache. Written out, see
    `model.attention`: the kernel's sums round otherwise.
    """
    num_keys = view.position + 1
    num_blocks = -(-num_keys // keys.shape[2])
    own = keys[:, list(view.blocks[:num_blocks])].flatten(1, 2)[:, :num_keys]  # [kv_heads, keys, head_dim]
    own = own.repeat_interleave(config.num_groups, dim=0)
    at = torch.tensor([view.position], device=keys.device)
    positions = torch.arange(num_keys, device=keys.device)
    bias = None
    if config.positions == "alibi":
        bias = alibi_bias(alibi_slopes(config.num_heads).to(keys.device), at, positions)
    visible = visible_keys(at, positions, config.sliding_window)
    return attention_weights(query.unsqueeze(1), own, visible, bias)[:, 0]
