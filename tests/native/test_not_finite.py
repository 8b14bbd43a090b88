"""Numbers that are not finite, wherever they arise, are told: attention must not make ordinary ones of them."""

import pytest
import torch
from native_models import native_model
from test_oracle import SETS, VARIANTS, random_model

from model.layers import SelfAttention
from model.native.lowering import KVCache, Quantize
from model.paged import Span


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(("quantize", "kv_cache"), [("none", "auto"), ("none", "int8"), ("int8", "auto")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_a_poisoned_projection_is_told(
    part: str, dtype: torch.dtype, quantize: Quantize, kv_cache: KVCache, instruction_set: str
) -> None:
    config = VARIANTS["gpt2"]
    model = random_model(config, dtype)
    attention = model.layers[0].attention
    assert isinstance(attention, SelfAttention)
    width = config.num_heads * config.head_dim
    first = ("query", "key", "value").index(part) * width
    assert attention.qkv.bias is not None
    attention.qkv.bias.data[first : first + width] = torch.nan
    native = native_model(model, 2, 1, instruction_set, quantize, kv_cache)
    _, is_finite = native.run(range(1, 21), [Span(0, 20, [0, 1])], [19])
    assert not any(is_finite)
