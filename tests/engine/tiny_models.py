"""Tiny random models for the tests of the engine: every family, and the corners of the configuration space."""

from dataclasses import replace

import torch

from model.config import ModelConfig
from model.gpt import GPT, initialise
from server.engine.selfcheck import make_exact

VOCAB_SIZE = 97
CONTEXT_LENGTH = 256  # four splits of 64 keys

GQA = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    context_length=CONTEXT_LENGTH,
    tie_embeddings=False,
)
FAMILIES: dict[str, ModelConfig] = {
    "gpt": replace(
        GQA,
        num_kv_heads=4,
        norm="layernorm",
        positions="learned",
        feed_forward="gelu_tanh",
        attention_bias=True,
        feed_forward_bias=True,
    ),
    "gqa": GQA,
    "moe": replace(GQA, num_experts=4, num_experts_per_token=2),
}
CORNERS: dict[str, ModelConfig] = {
    "alibi": replace(GQA, positions="alibi"),
    "alibi, heads no power of two": replace(GQA, positions="alibi", num_heads=6, num_kv_heads=3),
    "window": replace(GQA, sliding_window=21),
    "window beyond a split": replace(GQA, sliding_window=70, positions="none"),
    "multi-query": replace(GQA, num_kv_heads=1),
    "one head": replace(GQA, num_heads=1, num_kv_heads=1, head_dim=64),
    "post-norm": replace(GQA, norm_placement="post", norm="layernorm", positions="sinusoidal"),
    "qk-norm": replace(GQA, qk_norm=True),
    "narrow heads": replace(GQA, num_heads=8, num_kv_heads=4, head_dim=8),
    "groups of three": replace(GQA, num_heads=6, num_kv_heads=2),
    "every expert with biases": replace(
        FAMILIES["gpt"], num_experts=3, num_experts_per_token=3, feed_forward="gelu", norm="rmsnorm"
    ),
}


def tiny_model(config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> GPT:
    """A model with the product the engine would choose, whose logits differ enough that greedy output varies."""
    model = GPT(config)
    initialise(model, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8.0)
        elif "bias" in name:
            parameter.data.normal_(0.0, 0.1, generator=generator)
    model = model.to(dtype).eval().requires_grad_(False)
    make_exact(model, 512, allow_inexact=False)
    return model
