"""A row's logits have the same bits at every batch size, chunk cut, place in the step and thread count."""

from dataclasses import replace

import pytest
import torch
from native_models import native_model
from test_oracle import SETS, VARIANTS, random_model

from model.config import ModelConfig
from model.native.lowering import KVCache, Quantize
from model.native.native_model import NativeModel
from model.paged import Span

NAMES = (
    "llama",
    "gpt2",
    "one kv head",
    "odd sizes",
    "moe",
    "alibi",
    "sliding window",
    "wide head",
    "post-norm",
    "qk-norm",
)
PROBE = 137
# Element type, weights, cache. What matters to a sum's order is in other code for each of the last three.
FORMATS = [
    (torch.float32, "none", "auto"),
    (torch.bfloat16, "none", "auto"),
    (torch.bfloat16, "int8", "auto"),
    (torch.bfloat16, "none", "int8"),
    (torch.float32, "int8", "int8"),
]


def probe_tokens(config: ModelConfig) -> list[int]:
    return [(7 * i + 3) % config.vocab_size for i in range(PROBE)]


def in_chunks(native: NativeModel, cuts: list[int], neighbours: int, probe_at: int) -> torch.Tensor:
    """Logits [PROBE, vocab] of the probe computed in chunks, each among single-token and three-token neighbours."""
    config = native.lowering.config
    native.scrub(range(256))
    probe, blocks = probe_tokens(config), list(range(9, 0, -1))
    rows, done = [], 0
    for count in cuts:
        tokens: list[int] = []
        spans: list[Span] = []
        for n in range(neighbours + 1):
            if n == probe_at:
                first = len(tokens)
                tokens += probe[done : done + count]
                spans.append(Span(done, count, blocks))
            else:
                length = 1 if n % 3 else 3
                tokens += [(n * 5 + i) % config.vocab_size for i in range(length)]
                spans.append(Span(17 * (n % 2), length, [10 + 2 * n, 11 + 2 * n]))
        rows.append(native.run(tokens, spans, list(range(first, first + count)))[0])
        done += count
    assert done == PROBE
    return torch.cat(rows)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("dtype", "quantize", "kv_cache"), FORMATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_same_bits_in_chunks_and_company(
    name: str, dtype: torch.dtype, quantize: Quantize, kv_cache: KVCache, isa: str
) -> None:
    model = random_model(VARIANTS[name], dtype)
    natives = [native_model(model, 256, threads, isa, quantize, kv_cache) for threads in (1, 2, 3)]
    whole = in_chunks(natives[0], [PROBE], 0, 0)
    for native in natives:
        for cuts, neighbours, at in (
            ([1] * PROBE, 0, 0),
            ([17, 1, 1, 3, 5, 63, 47], 7, 3),
            ([64, 73], 40, 40),
            ([PROBE], 2, 1),
            ([2, 4, 6, 7, 8, 13, 97], 1, 0),
        ):
            assert torch.equal(whole, in_chunks(native, cuts, neighbours, at)), cuts


@pytest.mark.parametrize(("dtype", "quantize", "kv_cache"), FORMATS, ids=str)
@pytest.mark.parametrize("name", ["gpt2", "moe", "llama"])
def test_same_bits_at_every_batch_size(name: str, dtype: torch.dtype, quantize: Quantize, kv_cache: KVCache) -> None:
    config = replace(VARIANTS[name], hidden_size=160, intermediate_size=200)
    model = random_model(config, dtype)
    natives = [native_model(model, 256, threads, quantize=quantize, kv_cache=kv_cache) for threads in (1, 2)]
    prompts = [[(11 * n + i) % config.vocab_size for i in range(5 + n)] for n in range(40)]
    spans = [Span(0, len(prompt), [6 * n + i for i in range(6)]) for n, prompt in enumerate(prompts)]
    alone = [
        natives[0].run(prompt, [span], [len(prompt) - 1])[0][0] for prompt, span in zip(prompts, spans, strict=True)
    ]
    for native in natives:
        for batch in range(1, 41):
            for first in {0, 40 - batch}:
                mine = range(first, first + batch)
                tokens = [token for n in mine for token in prompts[n]]
                ends = torch.tensor([len(prompts[n]) for n in mine]).cumsum(0) - 1
                logits, _ = native.run(tokens, [spans[n] for n in mine], ends.tolist())
                assert torch.equal(logits, torch.stack([alone[n] for n in mine])), (batch, first)
