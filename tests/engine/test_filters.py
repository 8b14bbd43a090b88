"""Each stage of the sampler against a plain oracle, ties included, and their order against all of them together."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampler_oracle import (
    HIDDEN,
    adjusted,
    filtered,
    greedy,
    kept_by_min_p,
    kept_by_top_k,
    kept_by_top_p,
    single,
    softmax,
)
from torch import Tensor

from server.engine.filters import keep_min_p, keep_top_k, keep_top_p
from server.engine.params import SamplingParams
from server.engine.sampler import DecodingState, Row, choose

VOCAB_SIZE = 11
# Quarters, so that ties are frequent and float32 sums are exact.
QUARTERS = st.integers(-24, 24).map(lambda quarters: quarters / 4)
LOGITS = st.lists(QUARTERS, min_size=VOCAB_SIZE, max_size=VOCAB_SIZE)
TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=6)
FAST = settings(deadline=None, max_examples=150)


def kept(logits: Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in logits]


@FAST
@given(st.lists(st.tuples(LOGITS, st.integers(1, VOCAB_SIZE - 1)), min_size=1, max_size=4))
def test_top_k_keeps_the_k_largest_and_ties(rows: list[tuple[list[float], int]]) -> None:
    out = keep_top_k(torch.tensor([logits for logits, _ in rows]), torch.tensor([k for _, k in rows]))
    assert kept(out) == [kept_by_top_k(logits, k) for logits, k in rows]


def is_close_call(logits: list[float], p: float) -> bool:
    """Whether some sum of probabilities lies so near p that rounding decides."""
    total = 0.0
    for probability in sorted(softmax(logits), reverse=True):
        total += probability
        if abs(total - p) < 1e-9:
            return True
    return False


@FAST
@given(st.lists(st.tuples(LOGITS, st.floats(0.01, 0.999)), min_size=1, max_size=4))
def test_top_p_keeps_the_smallest_likely_set_and_ties(rows: list[tuple[list[float], float]]) -> None:
    assume(not any(is_close_call(logits, single(p)) for logits, p in rows))
    out = keep_top_p(torch.tensor([logits for logits, _ in rows]), torch.tensor([[p] for _, p in rows]))
    assert kept(out) == [kept_by_top_p(logits, single(p)) for logits, p in rows]


def test_top_p_that_rounding_never_reaches_keeps_everything() -> None:
    logits = torch.tensor([[0.0, -30.0, -60.0]])
    assert kept(keep_top_p(logits, torch.tensor([[1.0 + 1e-6]]))) == [{0, 1, 2}]


@FAST
@given(st.lists(st.tuples(LOGITS, st.floats(0.01, 1.0)), min_size=1, max_size=4))
def test_min_p_keeps_what_is_likely_enough(rows: list[tuple[list[float], float]]) -> None:
    differences = [abs(logit - max(logits) - math.log(single(p))) for logits, p in rows for logit in logits]
    assume(min((difference for difference in differences if difference > 0), default=1.0) > 1e-5)
    out = keep_min_p(torch.tensor([logits for logits, _ in rows]), torch.tensor([[p] for _, p in rows]))
    assert kept(out) == [kept_by_min_p(logits, single(p)) for logits, p in rows]


@pytest.mark.parametrize("keep", ["top_k", "top_p", "min_p"])
def test_filters_keep_what_ties_with_the_last_kept(keep: str) -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 0.0]])
    stages = {
        "top_k": lambda: keep_top_k(logits, torch.tensor([2])),
        "top_p": lambda: keep_top_p(logits, torch.tensor([[0.7]])),
        "min_p": lambda: keep_min_p(logits, torch.tensor([[0.3]])),
    }
    assert kept(stages[keep]()) == [{0, 1, 2}]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 8.0]),
    top_k=st.integers(0, VOCAB_SIZE + 2),
    top_p=st.sampled_from([0.05, 0.3, 0.61, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.013, 0.17, 0.77]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 2.0]),
    presence_penalty=st.sampled_from([-0.75, 0.0, 1.25]),
    frequency_penalty=st.sampled_from([-1.5, 0.0, 0.5]),
    logit_bias=st.lists(st.tuples(st.integers(0, VOCAB_SIZE - 1), QUARTERS), max_size=4).map(tuple),
    allowed_tokens=st.none() | st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=6, max_size=9).map(tuple),
    banned_tokens=TOKENS.map(lambda tokens: tuple(tokens[:3])),
    seed=st.integers(0, 2**64 - 1),
)
EXAMPLE = st.tuples(LOGITS, PARAMS, TOKENS, TOKENS, TOKENS.map(lambda tokens: tuple(tokens[:2])))
Example = tuple[list[float], SamplingParams, list[int], list[int], tuple[int, ...]]


def row_of(example: Example) -> Row:
    logits, params, prompt, output, withheld = example
    state = DecodingState.of(params, prompt, len(logits))
    if state is not None:
        for token in output:
            state.append(token)
    return Row(params, len(prompt) + len(output), withheld, state)


def oracle_row(example: Example) -> list[float]:
    logits, params, prompt, output, withheld = example
    return adjusted(logits, params, prompt, output, withheld)


def choices(examples: list[Example]) -> list[int]:
    return choose(torch.tensor([example[0] for example in examples]), [row_of(example) for example in examples])


@settings(FAST, max_examples=300)
@given(EXAMPLE)
def test_a_choice_lies_within_what_the_oracle_keeps_and_greedy_is_its_first_maximum(example: Example) -> None:
    row, params = oracle_row(example), example[1]
    assume(max(row) > HIDDEN)
    (token,) = choices([example])
    if params.temperature == 0:
        assert token == greedy(row)
    else:
        scaled = [logit / params.temperature for logit in row]
        assume(params.top_p == 1.0 or not is_close_call([max(logit, -1e9) for logit in scaled], single(params.top_p)))
        assert filtered(row, params)[token] > HIDDEN


@settings(FAST, max_examples=100)
@given(st.lists(EXAMPLE, min_size=2, max_size=9))
def test_a_choice_does_not_depend_on_the_other_rows(examples: list[Example]) -> None:
    rows = [example for example in examples if max(oracle_row(example)) > HIDDEN]
    assert (choices(rows) if rows else []) == [choices([example])[0] for example in rows]


def only_choice(logits: list[float], params: SamplingParams, output: list[int] | None = None) -> set[int]:
    """Every token chosen at one of many positions."""
    rows = []
    for position in range(200):
        row = row_of((logits, params, [], output or [], ()))
        rows.append(Row(row.params, position, row.withheld, row.state and row.state.fork()))
    return set(choose(torch.tensor([logits] * len(rows)), rows))


def test_bias_comes_before_the_repetition_penalty() -> None:
    """(1 + 4) / 2 = 2.5 loses to 3; 1 / 2 + 4 would win."""
    params = SamplingParams(temperature=0.0, logit_bias=((0, 4.0),), repetition_penalty=2.0)
    assert only_choice([1.0, 3.0], params, [0]) == {1}


def test_the_repetition_penalty_comes_before_the_subtracted_ones() -> None:
    """4 / 2 - 1 = 1 loses to 1.25; (4 - 1) / 2 would win."""
    params = SamplingParams(temperature=0.0, repetition_penalty=2.0, presence_penalty=1.0)
    assert only_choice([4.0, 1.25], params, [0]) == {1}
    assert only_choice([4.0, 0.75], params, [0]) == {0}


def test_temperature_comes_before_top_p() -> None:
    """Cold, the first token alone has the probability asked for; warm, it does not."""
    logits = [1.0, 0.0]
    assert only_choice(logits, SamplingParams(temperature=0.5, top_p=0.8)) == {0}
    assert only_choice(logits, SamplingParams(temperature=1.0, top_p=0.8)) == {0, 1}


def test_top_k_comes_before_top_p() -> None:
    """Among the two that top_k keeps the first has two thirds; among all it has less than 0.6."""
    logits = [math.log(weight) for weight in (4.0, 2.0, 1.0, 1.0)]
    assert only_choice(logits, SamplingParams(top_k=2, top_p=0.6)) == {0}
    assert only_choice(logits, SamplingParams(top_p=0.6)) == {0, 1}


def test_a_ban_outweighs_any_bias() -> None:
    params = SamplingParams(temperature=0.0, banned_tokens=(0,), logit_bias=((0, 100.0),))
    assert only_choice([1.0, 0.0], params) == {1}


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-45, 5e-324])
def test_the_coldest_temperatures_are_greedy_and_keep_to_what_is_allowed(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, banned_tokens=(0,))
    assert only_choice([9.0, 3.0, 7.0, 5.0], params) == {2}
    assert only_choice([9.0, -3.0, -7.0, -2.0], params) == {3}
