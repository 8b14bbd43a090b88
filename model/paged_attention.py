"""Paged attention from torch operations: the back end for any device and the oracle for every other one."""

from functools import partial

import torch
from torch import Tensor

from model.gpt import Attend
from model.paged import BLOCK_SIZE, SPLIT_SIZE, AttentionPlan, KVCache, TileGroup


def paged_attend(cache: KVCache, plan: AttentionPlan) -> Attend:
    """The `Attend` of one step: stores its keys and values, then attends over the blocks."""
    return partial(_attend, cache, plan)


def _attend(cache: KVCache, plan: AttentionPlan, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query [rows, heads, head_dim], key and value [rows, kv_heads, head_dim]; rows past plan.num_tokens are padding
    and get zeros."""
    _store(cache.keys[layer], key, plan)
    _store(cache.values[layer], value, plan)
    out = torch.zeros_like(query)
    for group in plan.groups:
        tile_rows = _attend_group(cache.keys[layer], cache.values[layer], query, group)
        out[group.kept_rows] = tile_rows[group.kept].to(query.dtype)
    return out


def _store(pool: Tensor, rows: Tensor, plan: AttentionPlan) -> None:
    heads_first = rows[: plan.num_tokens].transpose(0, 1).reshape(-1, rows.shape[-1])
    pool.view(-1, rows.shape[-1]).index_copy_(0, plan.slots, heads_first)


def _attend_group(keys: Tensor, values: Tensor, query: Tensor, group: TileGroup) -> Tensor:
    """Output [tiles * tokens, heads, head_dim] float32.

    Softmax over all splits with one maximum; sums run within a split first and then over splits in order, so hidden
    keys and padding splits add exact zeros and change nothing.
    """
    kv_heads, head_dim = keys.shape[0], keys.shape[-1]
    tiles, splits = group.num_tiles, group.num_splits
    tokens = group.rows.shape[0] // tiles
    groups = query.shape[1] // kv_heads
    tile_query = query[group.rows].float() * head_dim**-0.5
    tile_query = tile_query.view(tiles, tokens, kv_heads, groups, head_dim).permute(2, 0, 1, 3, 4)
    per_split = tile_query.reshape(kv_heads, tiles, 1, -1, head_dim).expand(-1, -1, splits, -1, -1)
    flat_query = per_split.reshape(kv_heads * tiles * splits, -1, head_dim)

    scores = torch.bmm(flat_query, _gather(keys, group).transpose(1, 2))
    scores = scores.view(kv_heads, tiles, splits, tokens, groups, SPLIT_SIZE).add_(group.bias)
    weights = scores.sub_(scores.amax(dim=(2, 5), keepdim=True)).exp_()
    totals = weights.sum(-1)  # [kv_heads, tiles, splits, tokens, groups]
    sums = torch.bmm(weights.view(flat_query.shape[0], -1, SPLIT_SIZE), _gather(values, group))
    sums = sums.view(kv_heads, tiles, splits, tokens, groups, head_dim)
    out = _sum_in_order(sums) / _sum_in_order(totals).unsqueeze(-1)
    return out.permute(1, 2, 0, 3, 4).reshape(tiles * tokens, -1, head_dim)


def _gather(pool: Tensor, group: TileGroup) -> Tensor:
    """The tiles' blocks as [kv_heads * tiles * splits, SPLIT_SIZE, head_dim] float32."""
    rows = pool.view(-1, BLOCK_SIZE * pool.shape[-1]).index_select(0, group.gather)
    return rows.view(-1, SPLIT_SIZE, pool.shape[-1]).float()


def _sum_in_order(parts: Tensor) -> Tensor:
    """Sum over dimension 2, first to last."""
    total = parts[:, :, 0]
    for index in range(1, parts.shape[2]):
        total = total + parts[:, :, index]
    return total
