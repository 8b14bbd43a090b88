"""The one forward pass, for every family, for training and serving. Where past tokens live is `attend`'s business."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.kernels import Product
from model.layers import EXACT_ACTIVATIONS, AttendLayer, FeedForward, Linear, Norm, SelfAttention
from model.moe import MixtureOfExperts
from model.positions import PositionTable, Rotation, rotary_table, sinusoidal_table

# (layer, query [..., heads, head_dim], key and value [..., kv_heads, head_dim]) -> [..., heads, head_dim]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# (layer, router logits [..., experts]): told about every routing decision.
ObserveRouting = Callable[[int, Tensor], None]


def ignore_routing(layer: int, logits: Tensor) -> None:
    """The observer of those who do not care."""


class Layer(nn.Module):
    """Self-attention and feed-forward, each with a residual connection and a norm before or after it."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.pre_norm = config.norm_placement == "pre"
        self.attention_norm = Norm(config.hidden_size, config.norm, config.norm_epsilon)
        self.attention = SelfAttention(config)
        self.feed_forward_norm = Norm(config.hidden_size, config.norm, config.norm_epsilon)
        self.feed_forward = MixtureOfExperts(config) if config.num_experts else FeedForward(config)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rotation: Rotation | None, attend: AttendLayer, observe: Callable[[Tensor], None]
    ) -> Tensor:
        def attention(rows: Tensor) -> Tensor:
            out: Tensor = self.attention(rows, rotation, attend)
            return out

        def feed_forward(rows: Tensor) -> Tensor:
            out = self.feed_forward(rows)
            if isinstance(out, tuple):
                out, routing = out
                observe(routing)
            result: Tensor = out
            return result

        return self._residual(self._residual(x, attention, self.attention_norm), feed_forward, self.feed_forward_norm)

    def _residual(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        """Pre-norm (Xiong et al. 2020) keeps the residual path free of norms; post-norm is Vaswani et al. 2017."""
        out: Tensor = x + self.dropout(sublayer(norm(x))) if self.pre_norm else norm(x + self.dropout(sublayer(x)))
        return out


class GPT(nn.Module):
    """A decoder-only transformer described by its configuration.

    Parameters are uninitialised until `initialise` or a checkpoint fills them.
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.embedding = _embedding(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.position_embedding = _embedding(config.context_length, config.hidden_size) if learned else None
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.num_layers))
        # With post-norm the last layer already ends in a norm.
        final = config.norm_placement == "pre"
        self.final_norm = Norm(config.hidden_size, config.norm, config.norm_epsilon) if final else nn.Identity()
        self.unembedding = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            assert isinstance(self.embedding.weight, nn.Parameter)
            self.unembedding.weight = self.embedding.weight
        self.dropout = nn.Dropout(dropout)
        self.position_table = _position_table(config)

    def forward(
        self, tokens: Tensor, positions: Tensor, attend: Attend, observe: ObserveRouting = ignore_routing
    ) -> Tensor:
        """Hidden states [..., hidden] of tokens [...] at positions [...]; `unembed` turns the wanted rows to logits."""
        x: Tensor = self.dropout(self._embed(tokens, positions))
        rotation = self._rotation(positions)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, partial(attend, index), partial(observe, index))
        out: Tensor = self.final_norm(x)
        return out

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] in float32."""
        logits: Tensor = self.unembedding(hidden)
        return logits.float()

    def use_product(self, product: Product) -> None:
        """Compute every matrix product with `product` from now on."""
        for module in self.modules():
            if isinstance(module, Linear | MixtureOfExperts):
                module.product = product

    def use_exact_activations(self) -> None:
        """Compute the feed-forward activations by EXACT_ACTIVATIONS from now on: slower, and without a gradient."""
        for module in self.modules():
            if isinstance(module, FeedForward | MixtureOfExperts):
                module.activation = EXACT_ACTIVATIONS[self.config.feed_forward]

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        elif self.config.positions == "sinusoidal" and self.position_table is not None:
            x = x + self.position_table.rows(positions).to(x.dtype)
        return x

    def _rotation(self, positions: Tensor) -> Rotation | None:
        if self.config.positions != "rotary" or self.position_table is None:
            return None
        cosine, sine = self.position_table.rows(positions).unsqueeze(-2).unbind(-3)
        return cosine, sine


def initialise(model: GPT, generator: torch.Generator) -> None:
    """GPT-2's initialisation: normal 0.02, residual outputs scaled by 1 / sqrt(2 layers), norms 1, biases 0."""
    residual = 0.02 / (2 * model.config.num_layers) ** 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            elif "bias" in name:
                parameter.zero_()
            else:
                scale = residual if "attention.out" in name or "down" in name else 0.02
                parameter.normal_(0.0, scale, generator=generator)


def _position_table(config: ModelConfig) -> PositionTable | None:
    # On the CPU even where the model is laid out on the meta device: the table is no parameter that a checkpoint fills.
    with torch.device("cpu"):
        if config.positions == "rotary":
            return PositionTable(rotary_table(config.context_length, config.head_dim, config.rope_theta))
        if config.positions == "sinusoidal":
            return PositionTable(sinusoidal_table(config.context_length, config.hidden_size))
    return None


def _embedding(rows: int, columns: int) -> nn.Embedding:
    # With weights given, or it would draw some, which on the meta device imports torch's compiler for five seconds.
    return nn.Embedding(rows, columns, _weight=torch.empty(rows, columns))
