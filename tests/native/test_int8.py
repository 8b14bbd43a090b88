"""int8 weights and int8 caches against torch with the same rounding written out in float32."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from native_models import native_model
from rounded_model import RoundedModel
from test_oracle import BASE, SETS, VARIANTS, random_model, steps
from torch import Tensor

from model.gpt import GPT
from model.native.lowering import KVCache, Quantize
from model.native.native_model import NativeModel
from model.paged import Span

FORMATS: list[tuple[Quantize, KVCache]] = [("int8", "auto"), ("none", "int8"), ("int8", "int8")]
# By format, the least cosine of a row and the most that half of the rows may differ. The neighbouring code of an input
# of a product costs the rows after it about 1e-2, that of a key or a value 2e-4; with both some row always meets one.
AFTER_EDGES = {("int8", "auto"): (0.9998, 1e-5), ("none", "int8"): (0.99999, 5e-4), ("int8", "int8"): (0.9995, 3e-2)}


def logits_of(runner: NativeModel | RoundedModel, model: GPT) -> Tensor:
    results = [runner.run(*step) for step in steps(model.config)]
    return torch.cat([result[0] if isinstance(result, tuple) else result for result in results])


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(("quantize", "kv_cache"), FORMATS)
@pytest.mark.parametrize("name", VARIANTS)
def test_agrees_with_the_same_rounding_in_torch(
    name: str, quantize: Quantize, kv_cache: KVCache, instruction_set: str
) -> None:
    model = random_model(VARIANTS[name], torch.float32)
    expected = logits_of(RoundedModel(model, quantize, kv_cache), model)
    got = logits_of(native_model(model, 16, 2, instruction_set, quantize, kv_cache), model)
    difference = (got - expected).abs().amax(-1)
    # A sum's last bit now and then moves a number over the edge between two codes. One in a key or a value stays for
    # the rest of its sequence, so not every row agrees; but some rows come before the first of them.
    assert difference.quantile(0.1) < 5e-6
    cosine, median = AFTER_EDGES[quantize, kv_cache]
    assert F.cosine_similarity(got, expected).min() > cosine
    assert difference.median() < median


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("quantize", "kv_cache"), FORMATS)
@pytest.mark.parametrize("name", VARIANTS)
def test_is_close_to_float32(name: str, quantize: Quantize, kv_cache: KVCache, dtype: torch.dtype) -> None:
    model = random_model(VARIANTS[name], dtype)
    expected = logits_of(RoundedModel(model, "none", "auto"), model)
    got = logits_of(native_model(model, 16, 1, "", quantize, kv_cache), model)
    cosine = F.cosine_similarity(got, expected)
    # A near tie of the router falls the other way in few rows.
    assert (cosine.median() if model.config.num_experts else cosine.min()) > 0.998, cosine


@pytest.mark.parametrize("instruction_set", SETS)
def test_the_largest_codes_do_not_saturate(instruction_set: str) -> None:
    """All weights and inputs at their greatest code, where sums of two products already leave 16 bits."""
    config = replace(BASE, feed_forward="relu", norm="layernorm", positions="none")
    model = random_model(config, torch.float32)
    with torch.no_grad():
        for layer in model.layers:
            for linear in (layer.feed_forward.up, layer.feed_forward.down, layer.attention.out, layer.attention.qkv):
                linear.weight.fill_(0.03)
            for norm in (layer.attention_norm, layer.feed_forward_norm):
                norm.weight.zero_()
                norm.bias.fill_(1.0)
    expected = logits_of(RoundedModel(model, "int8", "int8"), model)
    got = logits_of(native_model(model, 16, 1, instruction_set, "int8", "int8"), model)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(("quantize", "kv_cache"), FORMATS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_said_so_and_stays_in_its_sequence(
    broken: float, quantize: Quantize, kv_cache: KVCache, instruction_set: str
) -> None:
    model = random_model(replace(BASE, tie_embeddings=False), torch.bfloat16)
    healthy = native_model(model, 16, 1, instruction_set, quantize, kv_cache)
    expected, _ = healthy.run([1, 2, 3], [Span(0, 3, [4])], [2])
    with torch.no_grad():
        model.embedding.weight[7, 5] = broken
    native = native_model(model, 16, 1, instruction_set, quantize, kv_cache)
    got, is_finite = native.run([7, 2, 3, 1, 2, 3], [Span(0, 3, [5]), Span(0, 3, [4])], [5])
    assert is_finite[:6] == bytes([0, 0, 0, 1, 1, 1])
    assert torch.equal(got, expected)


def test_an_int8_cache_takes_the_bytes_it_says() -> None:
    model = random_model(replace(BASE, head_dim=64), torch.bfloat16)
    plain, small = (native_model(model, 1, 1, kv_cache=kind).lowering.bytes_per_block for kind in ("auto", "int8"))
    layers_and_heads, tokens = 2 * BASE.num_layers * BASE.num_kv_heads, 16
    assert plain == layers_and_heads * tokens * 64 * 2
    assert small == layers_and_heads * tokens * (64 + 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lowering_leaves_the_model_as_it_is(dtype: torch.dtype) -> None:
    model = random_model(BASE, dtype)
    before = copy.deepcopy(model.state_dict())
    native_model(model, 1, 1, quantize="int8")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
