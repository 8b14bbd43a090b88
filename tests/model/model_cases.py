"""Tiny configurations and random models for the tests of model/. Every family and every field has one."""

from dataclasses import replace

import torch
from torch import Tensor

from model.attention import causal_attend, explicit_attention
from model.config import ModelConfig
from model.gpt import GPT

PLAIN = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    intermediate_size=48,
    context_length=64,
)
GPT2_LIKE = replace(
    PLAIN,
    norm="layernorm",
    positions="learned",
    feed_forward="gelu_tanh",
    attention_bias=True,
    feed_forward_bias=True,
)
MIXTRAL_LIKE = replace(PLAIN, num_kv_heads=2, num_experts=4, num_experts_per_token=2, tie_embeddings=False)

# What each family must be able to say, by the model_type it is to be saved as.
FAMILIES: dict[str, tuple[ModelConfig, ...]] = {
    "gpt2": (
        GPT2_LIKE,
        replace(GPT2_LIKE, tie_embeddings=False),
        replace(GPT2_LIKE, feed_forward="gelu"),
        replace(GPT2_LIKE, feed_forward="relu", intermediate_size=128, norm_epsilon=1e-3),
    ),
    "llama": (
        PLAIN,
        replace(PLAIN, num_kv_heads=2, tie_embeddings=False, rope_theta=500_000.0),
        replace(PLAIN, num_kv_heads=1, head_dim=16),
        replace(PLAIN, attention_bias=True, norm_epsilon=1e-6),
        replace(PLAIN, feed_forward_bias=True),
    ),
    "mistral": (
        replace(PLAIN, sliding_window=5),
        # transformers does not open a Llama whose heads do not divide its hidden size.
        replace(PLAIN, num_heads=3, num_kv_heads=3, head_dim=10),
    ),
    "qwen3": (
        replace(PLAIN, qk_norm=True, num_kv_heads=2),
        replace(PLAIN, qk_norm=True, attention_bias=True, tie_embeddings=False),
    ),
    "mixtral": (
        MIXTRAL_LIKE,
        replace(MIXTRAL_LIKE, sliding_window=7, tie_embeddings=True),
        replace(MIXTRAL_LIKE, num_experts=3, num_experts_per_token=1, rope_theta=20_000.0),
    ),
}

# One change each that no other family has: these are ours alone.
OWN: dict[str, ModelConfig] = {
    "norm": replace(PLAIN, norm="layernorm"),
    "norm_placement": replace(PLAIN, norm_placement="post"),
    "learned": replace(PLAIN, positions="learned"),
    "sinusoidal": replace(PLAIN, positions="sinusoidal"),
    "alibi": replace(PLAIN, positions="alibi"),
    "none": replace(PLAIN, positions="none"),
    "gelu": replace(PLAIN, feed_forward="gelu"),
    "gelu_tanh": replace(PLAIN, feed_forward="gelu_tanh"),
    "relu": replace(PLAIN, feed_forward="relu"),
    "gqa with learned positions": replace(GPT2_LIKE, num_kv_heads=2),
    "qk_norm and window": replace(PLAIN, qk_norm=True, sliding_window=3),
    "experts with biases": replace(MIXTRAL_LIKE, attention_bias=True, feed_forward_bias=True),
    "experts with relu": replace(MIXTRAL_LIKE, feed_forward="relu"),
    "unused rope_theta": replace(GPT2_LIKE, rope_theta=5.0),
    "everything": replace(
        MIXTRAL_LIKE,
        norm="layernorm",
        norm_placement="post",
        norm_epsilon=0.125,
        positions="sinusoidal",
        rope_theta=7.5,
        feed_forward="gelu",
        attention_bias=True,
        feed_forward_bias=True,
        qk_norm=True,
        sliding_window=9,
    ),
}

EVERY: dict[str, ModelConfig] = {
    **{f"{family} {index}": config for family, configs in FAMILIES.items() for index, config in enumerate(configs)},
    **OWN,
}


def random_model(config: ModelConfig, seed: int = 0) -> GPT:
    """A model whose every parameter, norms and biases included, is random and large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(0.0, 0.2, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1.0)
    return model


def random_tokens(config: ModelConfig, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def logits(model: GPT, tokens: Tensor) -> Tensor:
    """Logits of every position of `tokens` [batch, length], by the written-out attention."""
    length = tokens.shape[-1]
    attend = causal_attend(model.config, length, tokens.device, explicit_attention)
    with torch.inference_mode():
        return model.unembed(model(tokens, torch.arange(length), attend))
