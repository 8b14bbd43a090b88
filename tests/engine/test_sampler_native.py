"""The native sampler against torch's: the same token for every row, to the last tie, whatever the row asks for."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_filters import EXAMPLE, FAST, HIDDEN, Example, oracle_row, row_of
from torch import Tensor

from model.native.abi import LibraryError, open_library
from server.engine.filters import integer_weights
from server.engine.noise import logarithm
from server.engine.params import SamplingParams
from server.engine.sampler import Row, choose
from server.engine.sampling.native import NativeSampler
from server.engine.sampling.state import DecodingState

PLAIN = SamplingParams()


@pytest.fixture(scope="module")
def native() -> NativeSampler:
    try:
        return NativeSampler(open_library())
    except LibraryError as error:
        pytest.skip(str(error))


def forked(rows: list[Row]) -> list[Row]:
    return [row._replace(state=row.state and row.state.fork()) for row in rows]


def assert_alike(native: NativeSampler, logits: Tensor, rows: list[Row]) -> None:
    """Chosen from among other rows, and those left as they are."""
    among = torch.cat((logits.flip(0), logits))
    before = among.clone()
    own = forked(rows)
    tokens = native(among, range(len(rows), 2 * len(rows)), own)
    assert tokens == choose(logits.clone(), rows)
    assert torch.equal(among, before)
    for mine, torchs in zip(own, rows, strict=True):
        if mine.state is not None and torchs.state is not None:
            assert mine.state.tokens.tolist() == torchs.state.tokens.tolist()


@FAST
@given(st.lists(EXAMPLE, min_size=1, max_size=6))
def test_rows_with_any_parameters_get_the_tokens_that_torch_gives(
    native: NativeSampler, examples: list[Example]
) -> None:
    examples = [example for example in examples if max(oracle_row(example)) > HIDDEN]
    assume(examples)
    assert_alike(native, torch.tensor([example[0] for example in examples]), [row_of(own) for own in examples])


@pytest.mark.parametrize("vocab_size", [1, 15, 64, 255, 257, 1000, 5000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("has_ties", [False, True])
def test_vocabularies_of_every_length_and_spread(
    native: NativeSampler, vocab_size: int, spread: float, has_ties: bool
) -> None:
    kinds = product([0.0, 1e-3, 0.7, 1.0], [0, 3, 300, vocab_size], [0.3, 0.999, 1.0], [0.0, 0.05])
    params = [
        SamplingParams(temperature=temperature, top_k=k, top_p=p, min_p=min_p, seed=2**63 + 7 * seed)
        for seed, (temperature, k, p, min_p) in enumerate(kinds)
    ]
    logits = torch.randn(len(params), vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * spread
    if has_ties:
        logits = (logits * 4 / spread).round() * spread / 4
    logits[1::3, 1::2] = HIDDEN
    assert_alike(native, logits, [Row(own, 11 * index) for index, own in enumerate(params)])


@pytest.mark.parametrize("window", [-1, 0, 5])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_penalties_of_a_history(native: NativeSampler, window: int, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, repeat_last_n=window, presence_penalty=0.7, top_p=0.95)
    rows = []
    for seed in range(40):
        own = replace(params, seed=seed, repetition_penalty=0.8 + seed / 40, frequency_penalty=0.1 * (seed % 7))
        rows.append(Row(own, 30, state=DecodingState.of(own, [(seed * place) % 50 for place in range(30)], 50, 12)))
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(3))
    for _ in range(8):  # the states grow
        assert_alike(native, logits, rows)


def test_rarer_stages_and_orders_go_through_torch_to_the_same_draw(native: NativeSampler) -> None:
    kinds = [
        PLAIN,
        replace(PLAIN, typical_p=0.8),
        replace(PLAIN, temperature=0.0, banned_tokens=(3,)),
        replace(PLAIN, banned_tokens=(1, 2), top_p=0.9),
        replace(PLAIN, temperature=2.0, top_k=20, samplers=("top_k", "temperature")),
        replace(PLAIN, mirostat=2),
        replace(PLAIN, temperature=0.0, mirostat=2),
        replace(PLAIN, dynatemp_range=0.5),
    ]
    rows = []
    for seed in range(64):
        params = replace(kinds[seed % len(kinds)], seed=seed)
        rows.append(Row(params, seed, state=DecodingState.of(params, (1, 2, 3), 300)))
    assert [row.params.program is None for row in rows[:8]] == [False, True, False, False, True, True, True, True]
    assert_alike(native, torch.randn(64, 300, generator=torch.Generator().manual_seed(4)) * 3, rows)


def test_a_token_depends_on_seed_and_position(native: NativeSampler) -> None:
    """The control of the comparisons: noise of another position gives other tokens."""
    logits = torch.zeros(50, 400)
    here = native(logits, range(50), [Row(replace(PLAIN, seed=seed), 5) for seed in range(50)])
    there = native(logits, range(50), [Row(replace(PLAIN, seed=seed), 6) for seed in range(50)])
    assert here != there
    assert len(set(here)) > 30


@FAST
@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=40))
def test_the_written_out_logarithm_is_one(values: list[float]) -> None:
    assert logarithm(torch.tensor(values, dtype=torch.float64)).tolist() == pytest.approx(
        [math.log(value) for value in values], rel=1e-15, abs=1e-15
    )


@FAST
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40))
def test_weights_are_exponentials_rounded_down(values: list[float]) -> None:
    (weights,) = integer_weights(torch.tensor([values])).tolist()
    exact = [math.exp(value - max(values)) * 2.0**44 for value in values]
    assert weights == pytest.approx(exact, rel=1e-14, abs=1.0)
    assert max(weights) == 2**44
