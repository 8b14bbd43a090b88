"""Mirostat against the oracle, step by step: what it keeps, which surprise it measures, where its mu goes."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampler_oracle import softmax
from strategies_oracle import Case, decided
from test_strategies import check_against_oracle

from server.engine.params import SamplingParams
from server.engine.sampler import DecodingState, Row, choose
from server.engine.sampling.mirostat import zipf_exponent, zipf_top_k

VOCAB_SIZE = 13
LOGITS = st.lists(st.integers(-16, 16).map(lambda quarters: quarters / 4), min_size=VOCAB_SIZE, max_size=VOCAB_SIZE)
FAST = settings(deadline=None, max_examples=200)


@FAST
@given(st.sampled_from([1, 2]), LOGITS, st.floats(-2.0, 8.0), st.sampled_from([0.5, 1.0, 1.7]))
def test_what_mirostat_keeps_is_the_oracles(version: int, logits: list[float], mu: float, temperature: float) -> None:
    """The filters of the request have no say: the temperature comes first, then mirostat alone."""
    params = SamplingParams(mirostat=version, temperature=temperature, top_k=1, top_p=0.1)
    check_against_oracle(logits, Case(params, mu=mu))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("target", [2.5, 3.5])
def test_mu_follows_the_surprise_of_what_is_chosen(version: int, target: float) -> None:
    """Every step: tokens lie within what the oracle keeps, and mu moves by eta times the error of the paper."""
    params = SamplingParams(mirostat=version, mirostat_tau=target, mirostat_eta=0.3, temperature=1.2, seed=5)
    state = DecodingState.of(params, (), 200)
    assert state is not None
    mu, surprises = 2 * target, []
    generator = torch.Generator().manual_seed(8)
    for position in range(120):
        logits = (torch.randn(200, generator=generator) * 3).tolist()
        case = Case(params, mu=state.mu)
        kept = decided(logits, case)
        (token,) = choose(torch.tensor([logits]), [Row(params, position, state=state)])
        assert kept[token] > -math.inf or case.is_close
        surprise = -math.log2(softmax([logit / 1.2 for logit in logits])[token])
        mu -= 0.3 * (surprise - target)
        assert state.mu == pytest.approx(mu, abs=1e-4)
        surprises.append(surprise)
    assert sum(surprises[20:]) / 100 == pytest.approx(target, abs=0.25)


def test_mirostat_rows_are_adjusted_each_by_its_own_token() -> None:
    quiet, loud = SamplingParams(mirostat=2, mirostat_eta=1.0, seed=1), SamplingParams(seed=2)
    states = [DecodingState.of(params, (), 4) for params in (quiet, loud, quiet)]
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]])
    choose(logits, [Row(params, 3, state=state) for params, state in zip((quiet, loud, quiet), states, strict=True)])
    first, none, last = states
    assert first is not None
    assert last is not None
    assert none is None
    assert (first.mu, last.mu) == (pytest.approx(10.0 - (2.0 - 5.0)), pytest.approx(10.0 - (0.0 - 5.0)))


def test_a_greedy_choice_surprises_nobody() -> None:
    params = SamplingParams(mirostat=1, temperature=0.0, mirostat_eta=1.0)
    state = DecodingState.of(params, (), 3)
    assert state is not None
    assert choose(torch.tensor([[0.0, 0.5, 0.0]]), [Row(params, 0, state=state)]) == [1]
    assert state.mu == 15.0


def test_the_exponent_of_a_zipfian_row_is_found() -> None:
    logits = [-1.7 * math.log(rank + 1) for rank in range(100)]
    assert zipf_exponent(logits) == pytest.approx(1.7)


@FAST
@given(st.floats(0.05, 4.0), st.floats(-5.0, 15.0), st.integers(2, 60_000))
def test_k_is_the_papers(exponent: float, mu: float, vocab_size: int) -> None:
    excess = exponent - 1
    assume(abs(excess) > 1e-3)
    log_k = math.log(excess * 2**mu / (1 - vocab_size**-excess)) / exponent
    assume(log_k < math.log(vocab_size))
    k = math.exp(log_k)
    assume(abs(k - round(k)) > 1e-6)
    assert zipf_top_k(exponent, mu, vocab_size) == max(1, math.floor(k))


@pytest.mark.parametrize("exponent", [-1e9, -3.0, -1e-12, 0.0, 1e-12, 1.0, 1.0 + 1e-12, 1e9])
@pytest.mark.parametrize("mu", [-1e6, 0.0, 1e6])
def test_k_is_a_number_of_tokens_for_every_exponent_and_mu(exponent: float, mu: float) -> None:
    assert 1 <= zipf_top_k(exponent, mu, 50_257) <= 50_257
