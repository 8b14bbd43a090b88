"""Paged KV storage and the plan of one step's attention over it. Knows blocks and positions, no request and no text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.attention import alibi_bias, visible_keys
from model.config import ModelConfig
from model.positions import alibi_slopes

BLOCK_SIZE = 16  # tokens
# Keys are reduced in splits of this fixed size, combined in order: a row's sum never depends on who shares the batch.
SPLIT_SIZE = 64
_SPLIT_BLOCKS = SPLIT_SIZE // BLOCK_SIZE
# Query rows of one tile share the keys gathered for it. Products of fewer than 4 rows take another code path in the
# library than taller ones, so even a single token is multiplied in a tile of at least 4 rows (heads of a group count).
_MIN_TILE_ROWS = 4
_PROMPT_TILE_TOKENS = 32

Int64Array = NDArray[np.int64]


class KVCache:
    """Keys and values of every block of every layer: two tensors per layer, [kv_heads, blocks, 16, head_dim]."""

    def __init__(self, config: ModelConfig, num_blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_layers, config.num_kv_heads, num_blocks, BLOCK_SIZE, config.head_dim)
        self.num_blocks = num_blocks
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def scrub(self, blocks: Sequence[int]) -> None:
        """Zero the contents of `blocks`: a stale NaN would outlive its masking, as 0 * NaN is NaN."""
        self.keys[:, :, list(blocks)] = 0
        self.values[:, :, list(blocks)] = 0


def kv_bytes_per_block(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes one block takes over all layers, keys and values."""
    return 2 * config.num_layers * config.num_kv_heads * BLOCK_SIZE * config.head_dim * dtype.itemsize


class Span(NamedTuple):
    """Consecutive tokens of one sequence that this step computes: positions start .. start + length - 1.

    `blocks` is the sequence's block table, covering at least positions 0 .. start + length - 1. A tuple, as one is made
    for every sequence and step: it costs a third of a frozen dataclass.
    """

    start: int
    length: int
    blocks: Sequence[int]


# A span, its first row in the step, and where in the span the tile begins.
Tile = tuple[Span, int, int]


@dataclass(frozen=True)
class TileGroup:
    """Query tiles that are computed in one batch: each has the same number of token rows and of key splits."""

    rows: Tensor  # [tiles * tokens] row of the flattened step each tile row reads
    gather: Tensor  # [kv_heads * tiles * blocks] row of the cache seen as [kv_heads * num_blocks, 16 * head_dim]
    bias: Tensor  # [1 or kv_heads, tiles, splits, tokens, 1 or groups, SPLIT_SIZE]: -inf hides a key
    kept: Tensor  # tile rows that are no padding
    kept_rows: Tensor  # the rows of the flattened step they are written to
    num_tiles: int
    num_splits: int


@dataclass(frozen=True)
class AttentionPlan:
    """All of one step's attention that does not depend on the layer."""

    num_tokens: int
    slots: Tensor  # [kv_heads * tokens] row of the cache seen as [kv_heads * num_blocks * 16, head_dim]
    groups: tuple[TileGroup, ...]


def plan_attention(spans: Sequence[Span], config: ModelConfig, num_blocks: int, device: torch.device) -> AttentionPlan:
    """Cut a step's spans (in the order of its flattened tokens) into tiles."""
    first_rows = np.cumsum([0, *(span.length for span in spans)])
    slots = np.concatenate([_slots(span) for span in spans])
    heads = np.arange(config.num_kv_heads)[:, None] * num_blocks
    grouped = _group_tiles(zip(spans, first_rows[:-1].tolist(), strict=True), config)
    return AttentionPlan(
        num_tokens=len(slots),
        slots=torch.from_numpy((heads * BLOCK_SIZE + slots).ravel()).to(device),
        groups=tuple(_plan_group(tiles, tokens, config, heads, device) for (tokens, _), tiles in grouped.items()),
    )


def _group_tiles(spans: Iterable[tuple[Span, int]], config: ModelConfig) -> dict[tuple[int, int], list[Tile]]:
    """Cut spans, each with its first row in the step, into tiles of equal height and about equally many splits.

    All tiles of a group gather as many keys as its longest. Without the second key one long sequence would make
    everyone in the step pay for its length; with powers of two nobody pays more than double.
    """
    decode_tokens = -(-_MIN_TILE_ROWS // config.num_groups)
    grouped: dict[tuple[int, int], list[Tile]] = {}
    for span, first_row in spans:
        tokens = decode_tokens if span.length <= decode_tokens else _PROMPT_TILE_TOKENS
        for offset in range(0, span.length, tokens):
            last = span.start + min(offset + tokens, span.length) - 1
            magnitude = (last // SPLIT_SIZE).bit_length()
            grouped.setdefault((tokens, magnitude), []).append((span, first_row, offset))
    return grouped


def _slots(span: Span) -> Int64Array:
    positions = np.arange(span.start, span.start + span.length)
    blocks = np.asarray(span.blocks, dtype=np.int64)
    slots: Int64Array = blocks[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    return slots


def _plan_group(
    tiles: Sequence[Tile], tokens: int, config: ModelConfig, heads: Int64Array, device: torch.device
) -> TileGroup:
    lengths = np.array([min(tokens, span.length - offset) for span, _, offset in tiles])
    valid = np.arange(tokens) < lengths[:, None]  # [tiles, tokens]
    # Padding rows repeat the tile's first token: always something to look at, so never 0 / 0.
    within = np.where(valid, np.arange(tokens), 0)
    rows = np.array([row + offset for _, row, offset in tiles])[:, None] + within
    positions = np.array([span.start + offset for span, _, offset in tiles])[:, None] + within
    num_splits = int(positions.max()) // SPLIT_SIZE + 1
    tables = np.zeros((len(tiles), num_splits * _SPLIT_BLOCKS), dtype=np.int64)
    for index, (span, _, offset) in enumerate(tiles):
        used = (span.start + offset + int(lengths[index]) - 1) // BLOCK_SIZE + 1
        tables[index, :used] = span.blocks[:used]
        # Padding splits read the sequence's own first block: another's might hold a NaN, which outlives its masking.
        tables[index, used:] = span.blocks[0]
    return TileGroup(
        rows=torch.from_numpy(rows.ravel()).to(device),
        gather=torch.from_numpy((heads + tables.ravel()).ravel()).to(device),
        bias=_bias(torch.from_numpy(positions).to(device), num_splits, config),
        kept=torch.from_numpy(np.flatnonzero(valid)).to(device),
        kept_rows=torch.from_numpy(rows[valid]).to(device),
        num_tiles=len(tiles),
        num_splits=num_splits,
    )


def _bias(positions: Tensor, num_splits: int, config: ModelConfig) -> Tensor:
    """What is added to the scores, see TileGroup.bias; positions [tiles, tokens]."""
    tiles, tokens = positions.shape
    keys = torch.arange(num_splits * SPLIT_SIZE, device=positions.device)
    visible = visible_keys(positions, keys, config.sliding_window)  # [tiles, tokens, keys]
    bias = torch.zeros(visible.shape, device=positions.device).unsqueeze(1)  # [tiles, 1, tokens, keys]
    if config.positions == "alibi":
        bias = alibi_bias(alibi_slopes(config.num_heads).to(positions.device), positions, keys)
    bias = bias.masked_fill(~visible.unsqueeze(1), float("-inf"))
    kv_heads = config.num_kv_heads if bias.shape[1] > 1 else 1
    split = bias.view(tiles, kv_heads, -1, tokens, num_splits, SPLIT_SIZE)
    return split.permute(1, 0, 4, 3, 2, 5).contiguous()
