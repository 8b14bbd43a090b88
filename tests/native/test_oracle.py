"""The native step against the torch forward, for every configuration field."""

import copy
from dataclasses import fields, replace

import pytest
import torch
from native_models import native_model

from model.config import CHOICES, ModelConfig
from model.gpt import GPT, initialise
from model.paged import Span
from server.engine.torch_runner import TorchRunner

BASE = ModelConfig(
    vocab_size=101,
    hidden_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=80,
    context_length=256,
)
VARIANTS = {
    "llama": BASE,
    "gpt2": replace(
        BASE,
        norm="layernorm",
        positions="learned",
        feed_forward="gelu_tanh",
        attention_bias=True,
        feed_forward_bias=True,
        num_kv_heads=4,
    ),
    "gelu": replace(BASE, feed_forward="gelu", feed_forward_bias=True),
    "relu": replace(BASE, feed_forward="relu"),
    "swiglu bias": replace(BASE, feed_forward_bias=True, attention_bias=True),
    "post-norm": replace(BASE, norm_placement="post"),
    "post-norm layernorm": replace(BASE, norm_placement="post", norm="layernorm"),
    "qk-norm": replace(BASE, qk_norm=True),
    "no positions": replace(BASE, positions="none"),
    "sinusoidal": replace(BASE, positions="sinusoidal"),
    "alibi": replace(BASE, positions="alibi"),
    "alibi, 3 heads": replace(BASE, positions="alibi", num_heads=3, num_kv_heads=1),
    "sliding window": replace(BASE, sliding_window=21),
    "one kv head": replace(BASE, num_kv_heads=1, num_heads=8),
    "odd sizes": replace(
        BASE, hidden_size=37, head_dim=10, intermediate_size=33, vocab_size=70, num_heads=3, num_kv_heads=3
    ),
    "odd head": replace(BASE, head_dim=7, positions="learned"),
    "wide head": replace(BASE, head_dim=128),
    "head of 80": replace(BASE, head_dim=80),
    "untied": replace(BASE, tie_embeddings=False),
    "moe": replace(BASE, num_experts=5, num_experts_per_token=2),
    "moe, all": replace(BASE, num_experts=3, num_experts_per_token=3, feed_forward="gelu", feed_forward_bias=True),
    "moe, post-norm": replace(BASE, num_experts=4, num_experts_per_token=1, norm_placement="post"),
    "deep and short": replace(BASE, num_layers=5, context_length=128),
    "epsilon": replace(BASE, norm_epsilon=0.1, rope_theta=77.0),
}
SETS = ("avx512", "avx2", "portable")
FLAGS = dict.fromkeys(("attention_bias", "feed_forward_bias", "qk_norm", "tie_embeddings"), (False, True))


def random_model(config: ModelConfig, dtype: torch.dtype) -> GPT:
    model = GPT(config)
    generator = torch.Generator().manual_seed(1)
    initialise(model, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.08 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval().requires_grad_(False)


def steps(config: ModelConfig):
    """Two prompts in part; the rest of one with the other's next token; then one token each and a new sequence."""
    ids = torch.Generator().manual_seed(2)

    def tokens(count: int) -> list[int]:
        return torch.randint(config.vocab_size, (count,), generator=ids).tolist()

    a, b, c = [3, 9, 1, 7, 12, 14, 15, 10], [5, 0, 2, 8, 4, 13], [6, 11]
    yield tokens(93), [Span(0, 70, a), Span(0, 23, b)], list(range(93))
    yield tokens(31), [Span(70, 30, a), Span(23, 1, b)], [0, 29, 30, 30]
    yield tokens(9), [Span(100, 1, a), Span(24, 7, b), Span(0, 1, c)], [8, 0, 4]


@pytest.mark.parametrize("field", [field.name for field in fields(ModelConfig)])
def test_every_field_of_the_configuration_is_compared(field: str) -> None:
    """All it can be where that is a few things, and at least two values of it where it is a number."""
    compared = {getattr(config, field) for config in VARIANTS.values()}
    assert len(compared) > 1
    assert compared >= set({**CHOICES, **FLAGS}.get(field, ()))


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_agrees_with_torch(name: str, dtype: torch.dtype, instruction_set: str) -> None:
    config = VARIANTS[name]
    model = random_model(config, dtype)
    # The judge of bfloat16 is the same model in float32: the torch back end rounds more often than the native one.
    torch_runner = TorchRunner(copy.deepcopy(model).float(), 16)
    native = native_model(model, 16, 2, instruction_set)
    assert native.instruction_set == instruction_set
    for tokens, spans, wanted in steps(config):
        expected = torch_runner.run(tokens, spans, wanted).logits
        got, is_finite = native.run(tokens, spans, wanted)
        assert all(is_finite)
        if dtype == torch.float32:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        else:
            cosine = torch.nn.functional.cosine_similarity(got, expected)
            assert cosine.min() > 0.9997, cosine.min()
