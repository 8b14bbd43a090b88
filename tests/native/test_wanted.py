"""Of rows that nobody wants the last layer makes keys and values only: that changes no bit of what is wanted."""

import copy

import pytest
import torch
from native_models import native_model
from test_exact import FORMATS, NAMES
from test_oracle import SETS, VARIANTS, random_model

from model.layers import SelfAttention
from model.native.lowering import KVCache, Quantize
from model.paged import Span

FIRST = [Span(0, 9, [5, 0, 6])]
STEP = [Span(9, 30, [5, 0, 6]), Span(0, 1, [2]), Span(0, 21, [3, 4])]
NEXT = [Span(39, 1, [5, 0, 6]), Span(1, 1, [2]), Span(21, 1, [3, 4])]
ROWS = sum(span.length for span in STEP)
# None; the spans' last; in any order and twice; all but some; runs of every kind.
CHOICES = ([], [29, 30, 51], [44, 2, 51, 2, 30, 3], [*range(7), *range(9, ROWS)], [0, 1, 2, 28, 29, 30, 31, 32, 50])


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("dtype", "quantize", "kv_cache"), FORMATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_same_bits_whichever_rows_are_wanted(
    name: str, dtype: torch.dtype, quantize: Quantize, kv_cache: KVCache, isa: str
) -> None:
    model = random_model(VARIANTS[name], dtype)

    def tokens(count: int) -> list[int]:
        return [(7 * i + 3) % model.config.vocab_size for i in range(count)]

    for threads in (1, 2):
        native = native_model(model, 8, threads, isa, quantize, kv_cache)
        native.run(tokens(9), FIRST, [8])
        everything, _ = native.run(tokens(ROWS), STEP, list(range(ROWS)))
        after, _ = native.run(tokens(3), NEXT, [0, 1, 2])
        for wanted in CHOICES:
            native.scrub(range(8))
            native.run(tokens(9), FIRST, [])
            some, is_finite = native.run(tokens(ROWS), STEP, wanted)
            assert torch.equal(some, everything[wanted]), wanted
            assert all(is_finite)
            assert torch.equal(native.run(tokens(3), NEXT, [0, 1, 2])[0], after), wanted


@pytest.mark.parametrize("kv_cache", ["auto", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keys_and_values_of_unwanted_rows_are_told_when_not_finite(dtype: torch.dtype, kv_cache: KVCache) -> None:
    config = VARIANTS["gpt2"]
    healthy = random_model(config, dtype)
    width = config.num_heads * config.head_dim
    for part, is_told in ((0, False), (1, True), (2, True)):  # queries are not needed
        model = copy.deepcopy(healthy)
        attention = model.layers[-1].attention
        assert isinstance(attention, SelfAttention)
        assert attention.qkv.bias is not None
        attention.qkv.bias.data[(part + 1) * width - 1] = torch.inf
        _, is_finite = native_model(model, 2, 1, kv_cache=kv_cache).run(range(1, 21), [Span(0, 20, [0, 1])], [])
        assert [not finite for finite in is_finite] == [is_told] * 20
