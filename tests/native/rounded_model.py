"""What int8 weights and int8 caches round, written out in float32: a model with these roundings and nothing else."""

import copy
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import Attention, alibi_bias, attention_weights, explicit_attention, visible_keys
from model.gpt import GPT
from model.moe import MixtureOfExperts
from model.native.lowering import KVCache, Quantize
from model.paged import Span
from model.positions import alibi_slopes

# The greatest codes of a query, and of a key's weight times its value's scale: each is two bytes.
QUERY_CODES = 32_512
WEIGHT_CODES = 65_535


def rounded(x: Tensor, greatest: int) -> Tensor:
    """To whole codes from -greatest to greatest, over the last dimension."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / greatest
    return (x / scale).round() * scale


def rounded_row(x: Tensor) -> Tensor:
    """To 256 levels from a row's least to its greatest number, one of them 0."""
    least, greatest = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    scale = (greatest - least).clamp_min(1e-30) / 255
    zero = (-least / scale).round()
    return (((x / scale).round() + zero).clamp(0, 255) - zero) * scale


def rounded_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(rounded_row(x), rounded(weight, 127), bias)


def rounded_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, bias: Tensor | None) -> Tensor:
    """An `Attention` that rounds keys and values to 8 bits, and what meets their codes to 16."""
    groups = query.shape[-3] // key.shape[-3]
    key, value = (rounded(x, 127).repeat_interleave(groups, dim=-3) for x in (key, value))
    weights = attention_weights(rounded(query, QUERY_CODES), key, visible, bias)
    scales = value.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return rounded(weights * scales.transpose(-1, -2), WEIGHT_CODES) @ (value / scales)


class RoundedModel:
    """A model in float32 that rounds what int8 rounds, and keeps whole sequences: each is known by its first block."""

    def __init__(self, model: GPT, quantize: Quantize, kv_cache: KVCache) -> None:
        self._model = copy.deepcopy(model).float()
        self._attention: Attention = rounded_attention if kv_cache == "int8" else explicit_attention
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # keys and values by layer and first block
        if quantize == "int8":
            self._model.use_product(rounded_product)
        for module in self._model.modules():
            if isinstance(module, MixtureOfExperts):
                module.router.product = F.linear

    def run(self, tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int]) -> Tensor:
        """Logits [wanted, vocab] of a step."""
        positions = torch.cat([torch.arange(span.start, span.start + span.length) for span in spans])
        hidden = self._model(torch.tensor(tokens), positions, partial(self._attend, spans))
        return self._model.unembed(hidden[list(wanted)])

    def _attend(self, spans: Sequence[Span], layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cuts = [span.length for span in spans]
        rows = zip(spans, query.split(cuts), key.split(cuts), value.split(cuts), strict=True)
        return torch.cat([self._attend_span(layer, span, *parts) for span, *parts in rows])

    def _attend_span(self, layer: int, span: Span, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [tokens, heads, head_dim], key and value [tokens, kv_heads, head_dim]."""
        if span.start:
            past_key, past_value = self._kept[layer, span.blocks[0]]
            key, value = torch.cat([past_key, key]), torch.cat([past_value, value])
        assert len(key) == span.start + span.length
        self._kept[layer, span.blocks[0]] = key, value
        config, at, of = self._model.config, torch.arange(span.start, len(key)), torch.arange(len(key))
        bias = alibi_bias(alibi_slopes(config.num_heads), at, of) if config.positions == "alibi" else None
        heads_first = (x.transpose(0, 1) for x in (query, key, value))
        return self._attention(*heads_first, visible_keys(at, of, config.sliding_window), bias).transpose(0, 1)
