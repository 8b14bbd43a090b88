"""Lower a loaded model to packed weights by walking its modules: they are the only description of the architecture."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.gpt import GPT, Layer
from model.layers import Linear, Norm, SelfAttention
from model.moe import MixtureOfExperts
from model.native.abi import (
    ACTIVATIONS,
    CHUNK_BYTES,
    ELEMENT_TYPES,
    LANES,
    PANEL,
    LayerWeights,
    ModelWeights,
    NormWeights,
    ProductWeights,
)
from model.paged import BLOCK_SIZE
from model.positions import alibi_slopes

Quantize = Literal["none", "int8"]
KVCache = Literal["auto", "int8"]

# Which row of a weight each packed column takes, -1 for padding.
ColumnRows = NDArray[np.int64]
MAX_HEAD_DIM = 1_024  # csrc/cache.h
QUANTISED_AT_ONCE = 1 << 16  # weights
SCALE_BYTES = 4  # of a token's key or value, in a cache of int8
MAX_INT8_INPUTS = (2**31 - 1) // (255 * 127)  # their sums must fit an int32

Item = TypeVar("Item", bound=ctypes.Structure)


class UnsupportedError(ValueError):
    """The native back end cannot run this model; the message says what stands in the way."""


class Arena:
    """Memory on huge pages, handed out piece after piece in the order a step reads it; freed as a whole."""

    PIECE = 64 << 20

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._pieces: list[tuple[int, int]] = []
        self._next = self._end = 0

    def take(self, num_bytes: int) -> int:
        """The address of `num_bytes` zeroed bytes on a cache line. Raises MemoryError."""
        num_bytes = -(-num_bytes // 64) * 64
        if self._next + num_bytes > self._end:
            size = max(num_bytes, self.PIECE)
            piece: int | None = self._library.minigpt_allocate(size)
            if piece is None:
                raise MemoryError(f"no {size} bytes for packed weights")
            self._pieces.append((piece, size))
            self._next, self._end = piece, piece + size
        self._next += num_bytes
        return self._next - num_bytes

    def __del__(self) -> None:
        for piece, size in self._pieces:
            self._library.minigpt_free(piece, size)


class Lowering:
    """A model's weights, packed. Holds every buffer the C structures point to: it must outlive their use.

    Of the model itself only the embeddings are kept. Raises UnsupportedError and MemoryError.
    """

    def __init__(
        self, model: GPT, library: ctypes.CDLL, quantize: Quantize = "none", kv_cache: KVCache = "auto"
    ) -> None:
        self.library = library
        self.config = model.config
        self._kept: list[object] = []
        weight = model.embedding.weight
        if str(weight.dtype) not in ELEMENT_TYPES:
            raise UnsupportedError(f"weights are {weight.dtype}; the native back end takes {', '.join(ELEMENT_TYPES)}")
        if weight.device.type != "cpu":
            raise UnsupportedError(f"weights are on {weight.device}; the native back end runs on the CPU")
        if model.config.head_dim > MAX_HEAD_DIM:
            raise UnsupportedError(
                f"head_dim is {model.config.head_dim}; the native back end takes at most {MAX_HEAD_DIM}"
            )
        if kv_cache == "int8" and model.config.context_length > MAX_INT8_INPUTS:
            raise UnsupportedError(
                f"context_length is {model.config.context_length}; a cache of int8 takes at most {MAX_INT8_INPUTS}"
            )
        self._dtype = weight.dtype
        self._quantize = quantize
        self._has_int8_cache = kv_cache == "int8"
        self._arena = Arena(library)
        self.weights = self._model(model)

    @property
    def bytes_per_block(self) -> int:
        """Bytes one block of the cache takes over all layers, keys and values; head_dim is padded to a register."""
        config = self.config
        padded = -(-config.head_dim // LANES) * LANES
        token_bytes = padded + SCALE_BYTES if self._has_int8_cache else padded * self._dtype.itemsize
        return 2 * config.num_layers * config.num_kv_heads * BLOCK_SIZE * token_bytes

    def _model(self, model: GPT) -> ModelWeights:
        config = model.config
        layers = [self._layer(layer) for layer in model.layers if isinstance(layer, Layer)]
        columns = len(self._up_rows(config.intermediate_size))
        table = None if model.position_table is None else model.position_table.rows(torch.arange(config.context_length))
        final = model.final_norm
        return ModelWeights(
            element=ELEMENT_TYPES[str(self._dtype)],
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            inner_size=columns // 2 if self._is_gated else columns,
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            pre_norm=config.norm_placement == "pre",
            activation=ACTIVATIONS[config.feed_forward],
            sliding_window=config.sliding_window or 0,
            int8_cache=self._has_int8_cache,
            embedding=self._keep(model.embedding.weight),
            position_embedding=self._elements(model.position_embedding.weight) if model.position_embedding else None,
            position_table=self._floats(table) if config.positions == "sinusoidal" else None,
            rotary_table=self._floats(table) if config.positions == "rotary" else None,
            alibi_slopes=self._floats(alibi_slopes(config.num_heads)) if config.positions == "alibi" else None,
            layers=self._array(LayerWeights, layers),
            final_norm=self._norm(final if isinstance(final, Norm) else None),
            unembedding=self._linear(model.unembedding),
        )

    def _layer(self, layer: Layer) -> LayerWeights:
        attention, feed_forward = layer.attention, layer.feed_forward
        assert isinstance(attention, SelfAttention)
        up_rows = self._up_rows(self.config.intermediate_size)
        if isinstance(feed_forward, MixtureOfExperts):
            # A router's products are small, and its choice between near equals is what quantisation would harm most.
            router, chosen = (
                self._plain(feed_forward.router.weight, feed_forward.router.bias),
                feed_forward.num_experts_per_token,
            )
            up_bias, down_bias = feed_forward.up_bias, feed_forward.down_bias
            experts = range(feed_forward.up.shape[0])
            ups = [self._product(feed_forward.up[e], None if up_bias is None else up_bias[e], up_rows) for e in experts]
            downs = [self._product(feed_forward.down[e], None if down_bias is None else down_bias[e]) for e in experts]
        else:
            router, chosen, experts = ProductWeights(), 0, range(0)
            ups = [self._product(feed_forward.up.weight, feed_forward.up.bias, up_rows)]
            downs = [self._linear(feed_forward.down)]
        return LayerWeights(
            attention_norm=self._norm(layer.attention_norm),
            qkv=self._linear(attention.qkv),
            query_norm=self._norm(attention.query_norm),
            key_norm=self._norm(attention.key_norm),
            out=self._linear(attention.out),
            feed_forward_norm=self._norm(layer.feed_forward_norm),
            num_experts=len(experts),
            experts_per_token=chosen,
            router=router,
            up=self._array(ProductWeights, ups),
            down=self._array(ProductWeights, downs),
        )

    @property
    def _is_gated(self) -> bool:
        return self.config.feed_forward == "swiglu"

    def _up_rows(self, inner: int) -> ColumnRows:
        """Plain panels; of a gated layer panels of half gates and half the ups that belong to them."""
        if not self._is_gated:
            return _plain_rows(inner)
        half = PANEL // 2
        gates = np.arange(-(-inner // half) * half).reshape(-1, half)
        gates[gates >= inner] = -1
        ups = np.where(gates < 0, -1, gates + inner)
        rows: ColumnRows = np.concatenate([gates, ups], axis=1).ravel()
        return rows

    def _norm(self, norm: nn.Module | None) -> NormWeights:
        if not isinstance(norm, Norm):
            return NormWeights()
        return NormWeights(
            weight=self._floats(norm.weight), bias=self._floats(norm.bias), size=norm.size, epsilon=norm.epsilon
        )

    def _linear(self, linear: Linear) -> ProductWeights:
        return self._product(linear.weight, linear.bias)

    def _product(self, weight: Tensor, bias: Tensor | None, rows: ColumnRows | None = None) -> ProductWeights:
        """A weight [out, in], quantised if that was asked for; `rows` says which of its rows each column is."""
        rows = _plain_rows(weight.shape[0]) if rows is None else rows
        if self._quantize == "none":
            return self._plain(weight, bias, rows)
        if weight.shape[1] > MAX_INT8_INPUTS:
            raise UnsupportedError(f"a product sums {weight.shape[1]} inputs; int8 takes at most {MAX_INT8_INPUTS}")
        with _one_thread():
            codes, scales, sums = quantise_rows(weight.detach())
        product = self._plain(codes, bias, rows)
        product.scales = self._floats(_columns(scales, rows))
        product.code_sums = self._keep(_columns(sums, rows))
        return product

    def _plain(self, weight: Tensor, bias: Tensor | None, rows: ColumnRows | None = None) -> ProductWeights:
        """A weight [out, in] in panels; `rows` says which of its rows each column is, by default in their order."""
        rows = _plain_rows(weight.shape[0]) if rows is None else rows
        if weight.dtype != torch.int8:
            self._require_own_type(weight)
        size, chunk = weight.element_size(), CHUNK_BYTES // weight.element_size()
        inputs = -(-weight.shape[1] // chunk) * chunk
        source = weight.detach().contiguous()
        packed = self._arena.take(len(rows) * inputs * size)
        self.library.minigpt_pack(source.data_ptr(), weight.shape[1], rows.ctypes.data, len(rows), inputs, size, packed)
        wide = None if bias is None else _columns(bias.detach().float(), rows)
        return ProductWeights(packed=packed, bias=self._floats(wide), columns=len(rows), inputs=inputs)

    def _require_own_type(self, weight: Tensor) -> None:
        """The library is told of one type for all."""
        if weight.dtype != self._dtype:
            raise UnsupportedError(f"a weight is {weight.dtype} and the embedding {self._dtype}; they must be the same")

    def _elements(self, weight: Tensor) -> int:
        self._require_own_type(weight)
        return self._keep(weight)

    def _floats(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self._keep(tensor.detach().float())

    def _keep(self, tensor: Tensor) -> int:
        kept = tensor.detach().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()

    def _array(self, kind: type[Item], items: list[Item]) -> "ctypes.Array[Item]":
        array = (kind * len(items))(*items)
        self._kept.append(array)
        return array


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [out, in] as int8 codes, a scale [out] for each row and the sums [out] of its codes.

    The largest code of a row is 127, and none is -128. (Dettmers et al. 2022, vector-wise quantisation.)
    """
    codes, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    sums = torch.empty(len(weight), dtype=torch.int32)
    # Row by row in pieces that stay in the processor's cache: five times as fast as all at once.
    rows = max(1, QUANTISED_AT_ONCE // weight.shape[1])
    pieces = zip(*(torch.split(tensor, rows) for tensor in (weight, codes, scales, sums)), strict=True)
    for part, part_codes, part_scales, part_sums in pieces:
        wide = part.float()
        torch.div(wide.abs().amax(1), 127.0, out=part_scales)
        exact = wide / part_scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        part_codes.copy_(exact.round_())
        part_sums.copy_(exact.sum(1))  # whole numbers below 2^24
    return codes, scales, sums


@contextmanager
def _one_thread() -> Iterator[None]:
    """For torch: pieces this small are done before a second thread has woken, and waiting takes seconds in all."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _columns(values: Tensor, rows: ColumnRows) -> Tensor:
    """The values of each column's row, 0 where it has none."""
    return torch.where(torch.from_numpy(rows >= 0), values[torch.from_numpy(rows.clip(0))], 0)


def _plain_rows(count: int) -> ColumnRows:
    rows = np.arange(-(-count // PANEL) * PANEL)
    rows[count:] = -1
    return rows
