"""The parts of a transformer layer: linear, norm, feed-forward and self-attention. Knows no cache and no batch."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.kernels import Product
from model.positions import Rotation, rotate

# (query [..., heads, head_dim], key and value [..., kv_heads, head_dim]) -> [..., heads, head_dim]
AttendLayer = Callable[[Tensor, Tensor, Tensor], Tensor]


class Linear(nn.Module):
    """y = x W^T + b, through a replaceable product so that serving can insist on an exact one."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.product: Product = F.linear

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the last dimension."""

    def __init__(self, size: int, kind: str, epsilon: float) -> None:
        super().__init__()
        self.size = size
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if kind == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return F.rms_norm(x, (self.size,), self.weight.to(x.dtype), self.epsilon)
        return F.layer_norm(x, (self.size,), self.weight, self.bias, self.epsilon)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016) that GPT-2 was trained with."""
    return F.gelu(x, approximate="tanh")


def swiglu(gate_and_up: Tensor) -> Tensor:
    """SiLU(gate) * up (Shazeer 2020); the two halves come from one product."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def exact_gelu_tanh(x: Tensor) -> Tensor:
    """`gelu_tanh` from operations that give an element the same bits wherever it stands, see EXACT_ACTIVATIONS."""
    wide = x.float()
    inner = (wide * wide * wide).mul_(0.044715).add_(wide).mul_((2 / math.pi) ** 0.5)
    return inner.tanh_().add_(1.0).mul_(wide).mul_(0.5).to(x.dtype)


def exact_swiglu(gate_and_up: Tensor) -> Tensor:
    """`swiglu` likewise."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    wide = gate.float()
    return (wide / wide.neg().exp_().add_(1.0)).to(gate.dtype) * up


Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "swiglu": swiglu,
}
# For serving. The library's SiLU and tanh-GELU run a vectorised loop and finish what is left over (at the end of the
# tensor, and where threads divide it) with a scalar one whose last bit differs; its exp, tanh and erf do not.
EXACT_ACTIVATIONS: dict[str, Activation] = {**ACTIVATIONS, "gelu_tanh": exact_gelu_tanh, "swiglu": exact_swiglu}


class FeedForward(nn.Module):
    """The dense position-wise layer: up, activation, down. SwiGLU's gate and up are one matrix, gate first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.intermediate_size * (2 if config.feed_forward == "swiglu" else 1)
        self.up = Linear(config.hidden_size, width, config.feed_forward_bias)
        self.down = Linear(config.intermediate_size, config.hidden_size, config.feed_forward_bias)
        self.activation: Activation = ACTIVATIONS[config.feed_forward]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


class SelfAttention(nn.Module):
    """Projections around attention. Where past keys and values live is the business of `attend`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.head_dim = config.head_dim
        width = config.num_heads * config.head_dim
        # Query, key and value heads from one product, in that order.
        self.qkv = Linear(config.hidden_size, sum(self.heads) * config.head_dim, config.attention_bias)
        self.out = Linear(width, config.hidden_size, config.attention_bias)
        self.query_norm = Norm(config.head_dim, "rmsnorm", config.norm_epsilon) if config.qk_norm else None
        self.key_norm = Norm(config.head_dim, "rmsnorm", config.norm_epsilon) if config.qk_norm else None

    def forward(self, x: Tensor, rotation: Rotation | None, attend: AttendLayer) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # [..., heads + 2 kv_heads, head_dim]
        query, key, value = heads.split(self.heads, dim=-2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        out: Tensor = self.out(attend(query, key, value).flatten(-2))
        return out
