"""Drawing and describing: pruning never changes a draw, seeds replay, and logprobs are those of the model."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_oracle import log_softmax
from test_noise import noise_of, plain_noise

import server.engine.sampler
from server.engine.noise import LANES, REACH, gumbel_noise
from server.engine.params import SamplingParams
from server.engine.sampler import Row, choose, describe

FAST = settings(deadline=None, max_examples=100)


def draw_with_all_noise(logits: list[float], seed: int, position: int) -> int:
    """The arg-max over every token's logit plus noise, none left out."""
    perturbed = torch.tensor(logits).double() + noise_of(seed, position, len(logits))
    return int(perturbed.argmax())


SEEDS = st.integers(0, 2**64 - 1)
WIDE = st.floats(-60, 60, width=32)


@FAST
@given(st.lists(WIDE, min_size=1, max_size=70), SEEDS, st.integers(0, 2**20))
def test_leaving_out_hopeless_tokens_never_changes_a_draw(logits: list[float], seed: int, position: int) -> None:
    row = Row(SamplingParams(seed=seed), position)
    assert choose(torch.tensor([logits]), [row]) == [draw_with_all_noise(logits, seed, position)]


def test_noise_is_left_out_only_beyond_its_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tall token and three quads at the edge, only the quad beyond the reach is spared its noise."""
    asked: list[int] = []

    def listening(seeds: torch.Tensor, positions: torch.Tensor, counters: torch.Tensor) -> torch.Tensor:
        asked.extend(counters.tolist())
        return gumbel_noise(seeds, positions, counters)

    monkeypatch.setattr(server.engine.sampler, "gumbel_noise", listening)
    tops = [0.0, -REACH + 0.01, -REACH - 0.01, -5.0]
    logits = [top - 40.0 * lane for top in tops for lane in range(LANES)]
    choose(torch.tensor([logits]), [Row(SamplingParams(seed=3), 9)])
    assert asked == [0, 1, 3]


def test_too_short_a_reach_would_change_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the pruning: at a reach of 3 some draws differ, so the comparison above can tell."""
    logits = [0.0, *[-3.5] * 39]
    expected = [draw_with_all_noise(logits, seed, 0) for seed in range(100)]
    rows = [Row(SamplingParams(seed=seed), 0) for seed in range(100)]
    assert choose(torch.tensor([logits] * 100), rows) == expected
    monkeypatch.setattr(server.engine.sampler, "REACH", 3.0)
    assert choose(torch.tensor([logits] * 100), rows) != expected


def test_a_draw_is_what_the_plain_formula_says() -> None:
    logits = [0.3, 1.0, -0.4, 0.9, 0.0, 0.7, 0.2]
    for position in range(300):
        params = SamplingParams(seed=2**64 - 5, temperature=0.5)
        noisy = [logit / 0.5 + plain_noise(params.seed, position, token) for token, logit in enumerate(logits)]
        assert choose(torch.tensor([logits]), [Row(params, position)]) == [noisy.index(max(noisy))]


def test_a_draw_does_not_depend_on_its_row_or_company() -> None:
    """Filters that every row, no row, and some rows ask for take different paths to the same tokens."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 301, generator=generator) * 3
    plain = SamplingParams()
    kinds = [
        plain,
        replace(plain, temperature=0.0),
        replace(plain, top_k=5),
        replace(plain, top_p=0.7, temperature=1.7),
        replace(plain, min_p=0.1),
        replace(plain, top_k=40, top_p=0.9, min_p=0.02, temperature=0.6),
    ]
    rows = [Row(replace(kinds[index % len(kinds)], seed=index), 3 * index) for index in range(40)]
    alone = [choose(logits[index : index + 1].clone(), [row])[0] for index, row in enumerate(rows)]
    assert choose(logits.clone(), rows) == alone
    backwards = choose(logits.flip(0), rows[::-1])
    assert backwards[::-1] == alone
    for kind in range(len(kinds)):
        of_a_kind = list(range(kind, 40, len(kinds)))
        assert choose(logits[of_a_kind], [rows[index] for index in of_a_kind]) == [alone[index] for index in of_a_kind]
    assert len(set(alone)) > 20


def test_greedy_takes_the_lowest_of_tied_tokens() -> None:
    logits = torch.zeros(3, 200)
    logits[0, [150, 31, 77]] = 1.0
    logits[1, [199, 198]] = 1.0
    assert choose(logits, [Row(SamplingParams(temperature=0.0), 0)] * 3) == [31, 198, 0]


QUARTERS = st.integers(-40, 40).map(lambda quarters: quarters / 4)
LOGITS = st.lists(QUARTERS, min_size=13, max_size=13)


@FAST
@given(st.lists(st.tuples(LOGITS, st.integers(0, 12), st.integers(0, 20)), min_size=1, max_size=6))
def test_logprobs_ranks_and_top_lists_are_the_oracles(rows: list[tuple[list[float], int, int]]) -> None:
    tokens, counts = [token for _, token, _ in rows], [count for _, _, count in rows]
    described = describe(torch.tensor([logits for logits, _, _ in rows]), tokens, counts)
    for (logits, token, count), said in zip(rows, described, strict=True):
        logprobs = log_softmax(logits)
        order = sorted(range(13), key=lambda other: (-logits[other], other))[:count]
        assert said.token == token
        assert said.logprob == pytest.approx(logprobs[token], abs=1e-5)
        assert said.rank == 1 + sum(logit > logits[token] for logit in logits)
        assert list(said.top_tokens) == order
        assert said.top_logprobs == pytest.approx([logprobs[other] for other in order], abs=1e-5)


def test_a_description_does_not_depend_on_the_other_rows() -> None:
    logits = torch.randn(37, 1003, generator=torch.Generator().manual_seed(1)) * 5
    tokens, counts = [index * 11 for index in range(37)], [index % 21 for index in range(37)]
    together = describe(logits, tokens, counts)
    for index in range(37):
        assert describe(logits[index : index + 1], [tokens[index]], [counts[index]]) == [together[index]]


def test_logprobs_of_a_real_vocabulary_are_accurate() -> None:
    logits = torch.randn(4, 50_257, generator=torch.Generator().manual_seed(2)) * 4
    exact = logits.double().log_softmax(-1)
    for row, said in enumerate(describe(logits, [1, 500, 50_256, 7], [20] * 4)):
        assert said.logprob == pytest.approx(float(exact[row, said.token]), abs=1e-5)
        assert said.top_logprobs == pytest.approx([float(exact[row, token]) for token in said.top_tokens], abs=1e-5)
        assert math.fsum(math.exp(logprob) for logprob in said.top_logprobs) < 1.0


def test_nothing_described_is_no_error() -> None:
    assert describe(torch.zeros(0, 9), [], []) == []
