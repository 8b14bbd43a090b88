"""Steps in a row in one call against as many calls: the same tokens, the same numbers, the same cache."""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
import torch
from native_models import native_model
from test_oracle import SETS, VARIANTS, random_model

from model.native.abi import NativeError
from model.native.lowering import KVCache, Quantize
from model.native.native_model import Decoded, Draws, Limit, NativeModel
from model.paged import Span
from server.engine.params import SamplingParams
from server.engine.sampling.native import NativeSampler
from server.engine.sampling.row import Row

KINDS = (
    SamplingParams(max_tokens=99, temperature=0.0),
    SamplingParams(max_tokens=99, seed=5),
    SamplingParams(max_tokens=99, seed=6, temperature=0.7, top_k=20, top_p=0.9),
    SamplingParams(max_tokens=99, seed=7, temperature=1.4, min_p=0.02),
)
BLOCKS = [[0, 5, 6], [1, 7, 8], [2, 9, 10], [3, 11, 12]]
STARTS = (3, 14, 15, 20)  # the second and the third go on in another block
PASSES = 11
FOREVER = Limit(PASSES, math.inf)


def with_prompts(native: NativeModel) -> NativeModel:
    """Its cache holds a prompt for each sequence."""
    for start, blocks in zip(STARTS, BLOCKS, strict=True):
        native.run([(7 * i + start) % 90 for i in range(start)], [Span(0, start, blocks)], [])
    return native


def spans_at(ahead: int) -> list[Span]:
    return [Span(start + ahead, 1, blocks) for start, blocks in zip(STARTS, BLOCKS, strict=True)]


def one_by_one(native: NativeModel, latest: Sequence[int], num_passes: int) -> tuple[list[list[int]], torch.Tensor]:
    """Tokens by pass, and the logits of the last."""
    sampler = NativeSampler(native.lowering.library)
    tokens: list[list[int]] = []
    logits = torch.empty(0)
    for ahead in range(num_passes):
        logits, _ = native.run(tokens[-1] if tokens else latest, spans_at(ahead), range(4))
        rows = [Row(params, start + ahead + 1) for params, start in zip(KINDS, STARTS, strict=True)]
        tokens.append(sampler(logits, range(4), rows))
    return tokens, logits


def in_a_row(
    native: NativeModel, latest: Sequence[int], limit: Limit = FOREVER, endings: Sequence[Collection[int]] = ((),) * 4
) -> Decoded:
    programs = [params.program for params in KINDS]
    draws = Draws([program for program in programs if program is not None], endings)
    return native.decode(latest, spans_at(0), draws, limit, torch.empty(4, native.lowering.config.vocab_size))


def flat(tokens: list[list[int]]) -> list[int]:
    return [token for each in tokens for token in each]


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(("quantize", "kv_cache"), [("none", "auto"), ("int8", "int8")])
@pytest.mark.parametrize("name", ["gpt2", "llama", "moe", "sliding window"])
def test_steps_in_a_row_are_the_steps_one_by_one(
    name: str, quantize: Quantize, kv_cache: KVCache, instruction_set: str
) -> None:
    model = random_model(VARIANTS[name], torch.bfloat16)
    single = with_prompts(native_model(model, 13, 2, instruction_set, quantize, kv_cache))
    expected, logits = one_by_one(single, [11, 12, 13, 14], PASSES)
    several = with_prompts(native_model(model, 13, 2, instruction_set, quantize, kv_cache))
    decoded = in_a_row(several, [11, 12, 13, 14])
    assert (decoded.tokens, decoded.num_passes) == (flat(expected), PASSES)
    assert torch.equal(decoded.logits, logits)
    assert decoded.is_finite == bytes([1] * 8)
    after = [native.run([1] * 4, spans_at(PASSES), range(4))[0] for native in (single, several)]
    assert torch.equal(*after)


def gpt2(poison: int | None = None) -> NativeModel:
    """Whose embedding of `poison` is not a number."""
    model = random_model(replace(VARIANTS["gpt2"], tie_embeddings=False), torch.bfloat16)
    if poison is not None:
        model.embedding.weight[poison] = torch.nan
    return with_prompts(native_model(model, 13, 1))


def test_a_token_that_ends_a_sequence_ends_the_row() -> None:
    expected = flat(one_by_one(gpt2(), [11, 12, 13, 14], PASSES)[0])
    third = expected[2::4]
    num_passes = 1 + next(place for place, token in enumerate(third) if place > 3 and token not in third[:place])
    ending = third[num_passes - 1]
    unseen = [token for token in range(97) if token not in expected]
    endings = ((), unseen[:2], (unseen[2], ending), (unseen[3],))
    decoded = in_a_row(gpt2(), [11, 12, 13, 14], endings=endings)
    assert (decoded.tokens, decoded.num_passes) == (expected[: 4 * num_passes], num_passes)


@pytest.mark.parametrize(("limit", "num_passes"), [(Limit(PASSES, 0.0), 1), (Limit(3, math.inf), 3)])
def test_no_pass_begins_beyond_the_limit(limit: Limit, num_passes: int) -> None:
    expected = flat(one_by_one(gpt2(), [11, 12, 13, 14], num_passes)[0])
    decoded = in_a_row(gpt2(), [11, 12, 13, 14], limit)
    assert (decoded.tokens, decoded.num_passes) == (expected, num_passes)


def test_no_pass_begins_once_the_watched_descriptor_has_something_to_read_or_no_writer_left() -> None:
    reading, writing = os.pipe()
    passes = []
    for disturb in (
        lambda: None,
        lambda: os.write(writing, b"x"),
        lambda: os.read(reading, 1),
        lambda: os.close(writing),
    ):
        disturb()
        passes.append(in_a_row(gpt2(), [11, 12, 13, 14], Limit(PASSES, math.inf, reading)).num_passes)
    os.close(reading)
    assert passes == [PASSES, 1, PASSES, 1]


def test_numbers_that_are_not_finite_end_the_row_before_anything_is_chosen_of_them() -> None:
    expected = flat(one_by_one(gpt2(), [11, 12, 13, 14], PASSES)[0])
    second = expected[1::4]
    # The second sequence chooses it in one pass, and the next computes it.
    poison = next(token for token in second[2:-1] if token >= 90 and expected.count(token) == 1)
    num_chosen = second.index(poison) + 1
    decoded = in_a_row(gpt2(poison), [11, 12, 13, 14])
    assert (decoded.tokens, decoded.num_passes) == (expected[: 4 * num_chosen], num_chosen + 1)
    assert decoded.is_finite == bytes([1, 0, 1, 1] * 2)


def test_no_passes_at_all_are_refused() -> None:
    with pytest.raises(NativeError, match="most_passes is 0; it must be 1 or more"):
        in_a_row(gpt2(), [11, 12, 13, 14], Limit(0, math.inf))


def test_tables_too_short_for_all_passes_are_refused_with_nothing_written() -> None:
    native, untouched = gpt2(), gpt2()
    with pytest.raises(NativeError, match="block table is too short for so many passes"):
        in_a_row(native, [11, 12, 13, 14], Limit(29, math.inf))
    assert torch.equal(*(one.run([1] * 4, spans_at(0), range(4))[0] for one in (native, untouched)))
