"""Paged attention against the written-out one, for any spans, blocks and position schemes; and its rows bit for bit."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import GQA
from torch import Tensor

from model.attention import causal_attend, explicit_attention
from model.config import ModelConfig, Positions
from model.paged import BLOCK_SIZE, KVCache, Span, plan_attention
from model.paged_attention import paged_attend

CPU = torch.device("cpu")
HEADS = st.sampled_from([(1, 1), (4, 4), (4, 2), (4, 1), (6, 3), (6, 2), (3, 1), (8, 1)])
CONFIGS = st.builds(
    lambda heads, head_dim, positions, window: replace(
        GQA,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        positions=positions,
        sliding_window=window,
        num_layers=1,
    ),
    HEADS,
    st.sampled_from([2, 8, 16, 20]),
    st.sampled_from(["learned", "sinusoidal", "rotary", "alibi", "none"]),
    st.none() | st.integers(1, 150),
)
LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=4)
Streams = list[tuple[Tensor, Tensor, Tensor]]  # query, key, value of each sequence, [length, heads, head_dim]


def random_streams(config: ModelConfig, lengths: Sequence[int], seed: int) -> Streams:
    generator = torch.Generator().manual_seed(seed)
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)

    def stream(length: int) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (torch.randn(length, count, config.head_dim, generator=generator) for count in heads)
        return query * 2, key, value

    return [stream(length) for length in lengths]


def random_tables(lengths: Sequence[int], seed: int) -> tuple[list[list[int]], int]:
    """A block table per sequence, blocks in no order and with unused ones between; and the number of blocks."""
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    blocks = np.random.default_rng(seed).permutation(sum(counts) + 3).tolist()
    ends = np.cumsum(counts).tolist()
    return [blocks[end - count : end] for end, count in zip(ends, counts, strict=True)], len(blocks)


def cuts(length: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """A sequence cut into chunks (start, end), from single tokens to all at once."""
    chunks, start = [], 0
    while start < length:
        end = min(length, start + int(generator.choice([1, 2, 3, 5, 16, 33, 200])))
        chunks.append((start, end))
        start = end
    return chunks


def paged(config: ModelConfig, streams: Streams, seed: int) -> list[Tensor]:
    """Outputs of all sequences, computed over several steps in which they take part as they please."""
    lengths = [len(query) for query, _, _ in streams]
    tables, num_blocks = random_tables(lengths, seed)
    cache = KVCache(config, num_blocks, torch.float32, CPU)
    cache.keys.normal_(0, 100)  # what earlier owners of the blocks left behind
    cache.values.normal_(0, 100)
    generator = np.random.default_rng(seed)
    queues = [cuts(length, generator) for length in lengths]
    outputs = [torch.empty(0)] * len(streams)
    while any(queues):
        ready = [index for index, queue in enumerate(queues) if queue]
        chosen = generator.permutation(ready)[: generator.integers(1, len(ready) + 1)].tolist()
        chunks = [(index, *queues[index].pop(0)) for index in chosen]
        spans = [Span(start, end - start, tables[index]) for index, start, end in chunks]
        parts = [torch.cat([streams[index][part][start:end] for index, start, end in chunks]) for part in range(3)]
        padded = [torch.cat((part, part.new_ones(3, *part.shape[1:]))) for part in parts]
        attend = paged_attend(cache, plan_attention(spans, config, num_blocks, CPU))
        out = attend(0, *padded)
        assert torch.equal(out[len(parts[0]) :], torch.zeros_like(out[len(parts[0]) :]))
        parts_out = torch.split(out, [*(end - start for _, start, end in chunks), 3])
        for (index, start, _), rows in zip(chunks, parts_out, strict=False):
            outputs[index] = rows if start == 0 else torch.cat((outputs[index], rows))
    return outputs


def written_out(config: ModelConfig, streams: Streams) -> list[Tensor]:
    outputs = []
    for query, key, value in streams:
        attend = causal_attend(config, len(query), CPU, explicit_attention)
        outputs.append(attend(0, query[None], key[None], value[None])[0])
    return outputs


@settings(deadline=None, max_examples=60)
@given(CONFIGS, LENGTHS, st.integers(0, 2**32 - 1))
def test_paged_attention_is_the_written_out_one(config: ModelConfig, lengths: list[int], seed: int) -> None:
    streams = random_streams(config, lengths, seed)
    for got, expected in zip(paged(config, streams, seed), written_out(config, streams), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(CONFIGS, LENGTHS, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_row_has_the_same_bits_for_every_cut_table_and_company(
    config: ModelConfig, lengths: list[int], first: int, second: int
) -> None:
    streams = random_streams(config, lengths, first)
    together = paged(config, streams, first)
    for got, stream in zip(together, streams, strict=True):
        assert torch.equal(got, paged(config, [stream], second)[0])


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi", "none"])
@pytest.mark.parametrize("window", [None, 1, 15, 64, 65, 130])
def test_every_position_scheme_attends_through_every_window(positions: Positions, window: int | None) -> None:
    config = replace(GQA, positions=positions, sliding_window=window, num_layers=1)
    streams = random_streams(config, [1, 16, 64, 65, 200], seed=7)
    for got, expected in zip(paged(config, streams, 7), written_out(config, streams), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_scrubbed_blocks_are_zero_and_their_neighbours_untouched() -> None:
    cache = KVCache(GQA, 5, torch.float32, CPU)
    for pool in (cache.keys, cache.values):
        pool.fill_(float("nan"))
    cache.scrub([1, 3])
    for pool in (cache.keys, cache.values):
        assert torch.equal(pool[:, :, [1, 3]], torch.zeros_like(pool[:, :, [1, 3]]))
        assert bool(pool[:, :, [0, 2, 4]].isnan().all())
