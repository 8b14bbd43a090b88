"""Chi-square tests: draws follow the softmax of what the filters keep, over seeds and over positions."""

import numpy as np
import pytest
import torch
from sampler_oracle import filtered, softmax
from scipy.stats import chisquare
from torch import Tensor

import server.engine.sampler
from server.engine.noise import gumbel_noise
from server.engine.params import SamplingParams
from server.engine.sampler import Row, choose

LOGITS = [1.5, 0.3, -0.7, 2.0, 0.0, -2.5, 1.1, 0.9, -0.2, 0.6, -1.4]
CASES = {
    "plain": SamplingParams(),
    "warm": SamplingParams(temperature=2.5),
    "cold": SamplingParams(temperature=0.7),
    "top_k": SamplingParams(top_k=6),
    "top_p": SamplingParams(top_p=0.8),
    "min_p": SamplingParams(min_p=0.15, temperature=1.3),
    "all": SamplingParams(temperature=1.2, top_k=8, top_p=0.9, min_p=0.1),
}
MILLION = [pytest.mark.slow, pytest.mark.timeout(600)]
SELECTION = [
    *[(name, "positions", 100_000) for name in CASES],
    *[(name, "seeds", 100_000) for name in ("plain", "all")],
    *[pytest.param(name, over, 1_000_000, marks=MILLION) for name in CASES for over in ("seeds", "positions")],
]
BATCH = 20_000
# A correct sampler fails a test at this level once in 10,000 choices of seeds; these seeds are fixed.
PLAUSIBLE = 1e-4
IMPLAUSIBLE = 1e-6


def counts_of(params: SamplingParams, draws: int, over: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How often each token is drawn, over different seeds at one position or over positions of one seed."""
    counts = np.zeros(len(LOGITS), dtype=np.int64)
    fields = {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    of_seed = [SamplingParams(**fields, seed=0)]
    for start in range(0, draws, BATCH):
        numbers = range(start, start + BATCH)
        if over == "seeds":
            rows = [Row(SamplingParams(**fields, seed=number), 17) for number in numbers]
        else:
            rows = [Row(of_seed[0], number) for number in numbers]
        tokens = choose(torch.tensor([LOGITS]).repeat(BATCH, 1), rows)
        counts += np.bincount(tokens, minlength=len(LOGITS))
    return counts


def plausibility(counts: np.ndarray[tuple[int], np.dtype[np.int64]], probabilities: list[float]) -> float:
    """The p-value of the counts; 0 when something impossible was drawn."""
    expected = np.array(probabilities)
    if counts[expected == 0].any():
        return 0.0
    possible = expected > 0
    return float(chisquare(counts[possible], expected[possible] / expected.sum() * counts.sum()).pvalue)


@pytest.mark.parametrize(("name", "over", "draws"), SELECTION)
def test_draws_follow_the_filtered_softmax(name: str, over: str, draws: int) -> None:
    params = CASES[name]
    assert plausibility(counts_of(params, draws, over), softmax(filtered(LOGITS, params))) > PLAUSIBLE


@pytest.mark.parametrize(("draws", "factor"), [(100_000, 1.08), pytest.param(1_000_000, 1.03, marks=MILLION)])
def test_a_distribution_a_few_percent_off_is_detected(draws: int, factor: float) -> None:
    """The power of the test: one token a little more likely, and one let in that a filter should have kept out."""
    counts = counts_of(CASES["plain"], draws, "positions")
    probabilities = softmax(LOGITS)
    assert plausibility(counts, probabilities) > PLAUSIBLE
    probabilities[3] *= factor
    assert plausibility(counts, probabilities) < IMPLAUSIBLE
    assert plausibility(counts, softmax(filtered(LOGITS, CASES["top_k"]))) == 0.0


@pytest.mark.parametrize("bias", ["scaled", "coarse", "token"])
def test_biased_noise_is_detected(bias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(seeds: Tensor, positions: Tensor, counters: Tensor) -> Tensor:
        noise = gumbel_noise(seeds, positions, counters)
        if bias == "scaled":
            return noise * 1.05
        if bias == "coarse":
            return noise.round(decimals=0)
        return noise + 0.1 * (counters[:, None] == 0)

    monkeypatch.setattr(server.engine.sampler, "gumbel_noise", biased)
    assert plausibility(counts_of(CASES["plain"], 100_000, "positions"), softmax(LOGITS)) < IMPLAUSIBLE


def test_neighbouring_positions_and_tokens_are_independent() -> None:
    """Pairs of draws at successive positions are as frequent as products of the single ones."""
    draws = 50_000
    row = SamplingParams(seed=12345)
    tokens = np.array(
        choose(torch.tensor([LOGITS]).repeat(draws, 1), [Row(row, position) for position in range(draws)])
    )
    pairs = np.bincount(tokens[0::2] * len(LOGITS) + tokens[1::2], minlength=len(LOGITS) ** 2)
    single = np.array(softmax(LOGITS))
    frequent = (expected := np.outer(single, single).ravel() * len(tokens) / 2) > 5
    observed = np.append(pairs[frequent], pairs[~frequent].sum())
    wanted = np.append(expected[frequent], expected[~frequent].sum())
    assert chisquare(observed, wanted).pvalue > PLAUSIBLE
