"""Causal attention over whole sequences: written out (for teaching, and as the oracle) and by torch's fused call."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.gpt import Attend
from model.positions import alibi_slopes

# (query [batch, heads, queries, head_dim], key and value [batch, kv_heads, keys, head_dim],
#  visible [queries, keys] bool, bias [heads, queries, keys] or None) -> [batch, heads, queries, head_dim]
Attention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def visible_keys(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """Which keys a query may look at: itself and earlier ones, at most `window` of them; [..., queries, keys] bool."""
    distance = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


def alibi_bias(slopes: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Minus slope times distance, [..., heads, queries, keys] (Press et al. 2022)."""
    distance = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)
    return -slopes[:, None, None] * distance.unsqueeze(-3)


def attention_weights(query: Tensor, key: Tensor, visible: Tensor, bias: Tensor | None) -> Tensor:
    """How much each query attends to each key, [batch, heads, queries, keys]: rows sum to 1, hidden keys get 0.

    The scaled dot products of Vaswani et al. 2017, masked before the softmax, in float32. Heads of query and key must
    agree.
    """
    scores = query.float() @ key.float().transpose(-1, -2) / query.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias
    weights: Tensor = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return weights


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, bias: Tensor | None) -> Tensor:
    """Attention step by step: scores, mask, softmax, weighted values. Each kv head serves a group of query heads."""
    groups = query.shape[-3] // key.shape[-3]
    key, value = key.repeat_interleave(groups, dim=-3), value.repeat_interleave(groups, dim=-3)
    return (attention_weights(query, key, visible, bias) @ value.float()).to(query.dtype)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, bias: Tensor | None) -> Tensor:
    """The same by torch's fused kernel."""
    mask = visible
    if bias is not None:
        mask = bias.to(query.dtype).masked_fill(~visible, float("-inf"))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def causal_attend(config: ModelConfig, length: int, device: torch.device, attention: Attention) -> Attend:
    """An `Attend` over whole sequences [batch, length, ...] whose tokens stand at positions 0 .. length - 1."""
    positions = torch.arange(length, device=device)
    visible = visible_keys(positions, positions, config.sliding_window)
    bias = None
    if config.positions == "alibi":
        bias = alibi_bias(alibi_slopes(config.num_heads).to(device), positions, positions)
    return partial(_attend_sequences, attention, visible, bias)


def causal_fused_attend(config: ModelConfig, length: int, device: torch.device) -> Attend:
    """`causal_attend` by the library, with its causal flag where nothing else hides a key: the fast path."""
    if config.positions == "alibi" or config.sliding_window is not None:
        return causal_attend(config, length, device, fused_attention)
    return partial(_attend_sequences, _causal_flag_attention, torch.empty(0), None)


def _attend_sequences(
    attention: Attention, visible: Tensor, bias: Tensor | None, layer: int, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    query, key, value = query.transpose(-2, -3), key.transpose(-2, -3), value.transpose(-2, -3)
    return attention(query, key, value, visible, bias).transpose(-2, -3)


def _causal_flag_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, bias: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
