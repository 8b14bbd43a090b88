"""Every strategy, alone and in any order, against the oracle: exact sets, ties included, and probabilities to 1e-6."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sampler_oracle import HIDDEN, softmax
from strategies_oracle import STAGES, Case, coin, decided
from torch import Tensor

from server.engine.params import SamplingParams
from server.engine.sampler import DecodingState, Row, choose
from server.engine.sampling.order import DEFAULT_ORDER, MIROSTAT, SAMPLERS
from server.engine.sampling.stages import STAGES as REGISTERED

VOCAB_SIZE = 13
# Quarters, so that ties are frequent and float32 sums are exact.
QUARTERS = st.integers(-16, 16).map(lambda quarters: quarters / 4)
LOGITS = st.lists(QUARTERS, min_size=VOCAB_SIZE, max_size=VOCAB_SIZE)
# Three of the tokens only, so that histories repeat themselves.
HISTORY = st.lists(st.integers(0, 2), max_size=10)
FAST = settings(deadline=None, max_examples=150)

VALUES: dict[str, st.SearchStrategy[object]] = {
    "temperature": st.sampled_from([0.0, 0.5, 0.7, 1.0, 1.3, 2.0]),
    "dynatemp_range": st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    "dynatemp_exponent": st.sampled_from([0.5, 1.0, 2.0]),
    "top_n_sigma": st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    "top_k": st.integers(0, VOCAB_SIZE + 1),
    "typical_p": st.sampled_from([0.05, 0.31, 0.6, 0.93, 1.0]),
    "epsilon_cutoff": st.sampled_from([0.0, 0.003, 0.04, 0.13, 1.0]),
    "eta_cutoff": st.sampled_from([0.0, 0.003, 0.04, 0.13, 1.0]),
    "top_a": st.sampled_from([0.0, 0.01, 0.2, 0.77, 1.0]),
    "top_p": st.sampled_from([0.05, 0.31, 0.6, 0.93, 1.0]),
    "min_p": st.sampled_from([0.0, 0.013, 0.17, 0.77]),
    "xtc_probability": st.sampled_from([0.0, 0.5, 1.0]),
    "xtc_threshold": st.sampled_from([0.0, 0.02, 0.11, 0.3]),
    "repetition_penalty": st.sampled_from([0.5, 1.0, 2.0]),
    "presence_penalty": st.sampled_from([-0.75, 0.0, 1.25]),
    "frequency_penalty": st.sampled_from([-1.5, 0.0, 0.5]),
    "repeat_last_n": st.sampled_from([-1, -1, 0, 1, 3, 100]),
    "dry_multiplier": st.sampled_from([0.0, 0.5, 1.0]),
    "dry_base": st.sampled_from([1.0, 1.5, 2.0]),
    "dry_allowed_length": st.integers(1, 3),
    "dry_range": st.sampled_from([-1, -1, 0, 1, 4]),
    "dry_breakers": st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=2).map(tuple), max_size=2).map(tuple),
}
ORDERS = st.permutations(DEFAULT_ORDER).flatmap(
    lambda order: st.integers(0, len(order)).map(lambda count: tuple(order[:count]))
)


def params_of(names: list[str], orders: st.SearchStrategy[tuple[str, ...]]) -> st.SearchStrategy[SamplingParams]:
    """Parameters with the given ones drawn, and the others neutral."""
    drawn = {name: VALUES[name] for name in names}
    return st.builds(SamplingParams, samplers=orders, seed=st.integers(0, 2**64 - 1), **drawn)


def row_of(case: Case) -> Row:
    state = DecodingState.of(case.params, case.prompt, VOCAB_SIZE)
    for token in case.output:
        if state is not None:
            state.append(token)
    if state is not None and case.params.mirostat:
        state.mu = case.mu
    return Row(case.params, case.position, state=state)


def before_the_draw(logits: list[float], case: Case) -> list[float]:
    """What the engine makes of a row."""
    seen: list[Tensor] = []

    def remember(stage: str, indices: object, before: Tensor, after: Tensor) -> None:
        seen.append(before)

    choose(torch.tensor([logits]), [row_of(case)], remember)
    result: list[float] = seen[-1][0].tolist()
    return result


def check_against_oracle(logits: list[float], case: Case) -> None:
    expected = decided(logits, case)
    assume(not case.is_close)
    made = before_the_draw(logits, case)
    assert {token for token, x in enumerate(made) if x > HIDDEN} == {t for t, x in enumerate(expected) if x > HIDDEN}
    assert softmax(made) == pytest.approx(softmax(expected), abs=1e-6)


CASES = st.tuples(HISTORY, HISTORY, st.integers(0, 2**20))


@pytest.mark.parametrize("stage", list(SAMPLERS))
@settings(FAST)
@given(data=st.data())
def test_each_stage_alone_is_the_oracles(stage: str, data: st.DataObject) -> None:
    params = data.draw(params_of(list(SAMPLERS[stage].parameters), st.just(DEFAULT_ORDER)))
    prompt, output, position = data.draw(CASES)
    check_against_oracle(data.draw(LOGITS), Case(params, prompt, output, position))


# A dynamic temperature so cold that most probabilities are too small for a number.
COLD = SamplingParams(temperature=0.0, dynatemp_range=0.25, typical_p=0.05)


@settings(FAST, max_examples=400)
@example(COLD, [7.5, *[0.0] * 12], ([], [], 0))
@given(params_of(list(VALUES), st.one_of(st.just(DEFAULT_ORDER), ORDERS)), LOGITS, CASES)
def test_all_stages_in_any_order_are_the_oracles(
    params: SamplingParams, logits: list[float], history: tuple[list[int], list[int], int]
) -> None:
    check_against_oracle(logits, Case(params, *history))


def test_the_registry_the_names_and_the_oracle_know_the_same_stages() -> None:
    assert list(REGISTERED) == [*SAMPLERS, MIROSTAT]
    assert list(SAMPLERS) == list(STAGES)
    parameters = {name for stage in SAMPLERS.values() for name in stage.parameters}
    assert parameters <= set(vars(SamplingParams()))
    assert parameters <= set(VALUES)


TIED = [2.0, 1.0, 1.0, 0.0, -1.0]
KEEPS = [
    ({"top_n_sigma": 1.0}, {0, 1, 2}),
    ({"epsilon_cutoff": 0.15}, {0, 1, 2}),
    ({"epsilon_cutoff": 0.99}, {0}),
    ({"eta_cutoff": 0.4}, {0, 1, 2}),
    ({"top_a": 0.5}, {0, 1, 2}),
    ({"typical_p": 0.1}, {1, 2}),
    ({"xtc_probability": 1.0, "xtc_threshold": 0.1}, {1, 2, 3, 4}),
    ({"xtc_probability": 1.0, "xtc_threshold": 0.5}, {0, 1, 2, 3, 4}),
    ({"mirostat": 2, "mirostat_tau": 1.4}, {0, 1, 2}),
]


@pytest.mark.parametrize(("fields", "kept"), KEEPS)
def test_ties_stay_together(fields: dict[str, float], kept: set[int]) -> None:
    """Probabilities are 0.505, 0.186 twice, 0.068 and 0.025, the entropy 1.26 nats."""
    params = SamplingParams(**fields)  # type: ignore[arg-type]
    made = before_the_draw(TIED, Case(params, mu=2 * params.mirostat_tau))
    assert {token for token, x in enumerate(made) if x > HIDDEN} == kept


VERSIONS = st.sampled_from([0, 0, 1, 2])
ANY = st.builds(
    lambda params, version, tau, temperature: replace(
        params, mirostat=version, mirostat_tau=tau, temperature=temperature
    ),
    params_of(list(VALUES), ORDERS),
    VERSIONS,
    st.sampled_from([0.0, 0.5, 3.0, 100.0]),
    st.sampled_from([0.0, 1e-30, 5e-324, 0.3, 1.0, 10.0]),
)
WILD = st.lists(st.floats(-100, 100, width=32), min_size=VOCAB_SIZE, max_size=VOCAB_SIZE)


@settings(FAST, max_examples=300)
@given(st.lists(st.tuples(ANY, WILD, CASES), min_size=1, max_size=7))
def test_any_combination_is_a_proper_distribution_and_a_row_is_the_same_alone_and_in_a_batch(
    rows: list[tuple[SamplingParams, list[float], tuple[list[int], list[int], int]]],
) -> None:
    cases = [Case(params, *history, mu=2 * params.mirostat_tau) for params, _, history in rows]
    made: dict[int, Tensor] = {}

    def remember(stage: str, indices: object, before: Tensor, after: Tensor) -> None:
        if stage == "draw":
            made.update(enumerate(before.clone()))

    batch = torch.tensor([logits for _, logits, _ in rows])
    together = choose(batch.clone(), [row_of(case) for case in cases], remember)
    for index, (case, token) in enumerate(zip(cases, together, strict=True)):
        alone = before_the_draw(rows[index][1], case)
        assert made[index].tolist() == alone
        assert max(alone) > HIDDEN
        assert math.fsum(softmax(alone)) == pytest.approx(1.0)
        assert alone[token] > HIDDEN
        assert choose(batch[index : index + 1].clone(), [row_of(case)]) == [token]
    assert choose(batch.clone(), [row_of(case) for case in cases]) == together


def test_a_row_of_a_large_vocabulary_is_the_same_alone_and_in_a_batch() -> None:
    """Long rows are where sums are split among threads and vector lanes."""
    logits = torch.randn(7, 50_257, generator=torch.Generator().manual_seed(3)) * 4
    kinds: list[dict[str, float]] = [
        {"dynatemp_range": 0.5},
        {"top_n_sigma": 1.0},
        {"typical_p": 0.9},
        {"epsilon_cutoff": 3e-4},
        {"eta_cutoff": 3e-4, "temperature": 0.7},
        {"xtc_probability": 1.0, "xtc_threshold": 0.05, "top_a": 0.1},
        {"mirostat": 1, "temperature": 1.5},
    ]
    cases = [Case(SamplingParams(seed=seed, **kind)) for seed, kind in enumerate(kinds)]  # type: ignore[arg-type]
    drawn: list[Tensor] = []
    rows = [Row(c.params, 5, state=DecodingState.of(c.params, (), 50_257)) for c in cases]
    choose(logits.clone(), rows, lambda stage, _, before, __: drawn.append(before) if stage == "draw" else None)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    for index, case in enumerate(cases):
        row = Row(case.params, 5, state=DecodingState.of(case.params, (), 50_257))
        choose(logits[index : index + 1].clone(), [row], lambda stage, _, before, __: drawn.append(before))
        assert torch.equal(drawn[-1], drawn[0][index : index + 1])
    torch.set_num_threads(threads)


@settings(FAST)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**20), st.floats(0.01, 0.99))
def test_the_coin_of_xtc_is_its_own_stream_of_philox(seed: int, position: int, probability: float) -> None:
    params = SamplingParams(seed=seed, xtc_probability=probability)
    kept = before_the_draw(TIED, Case(params, position=position))
    assert (kept[0] == HIDDEN) == (coin(params, position) < probability)


def test_the_coin_of_xtc_falls_as_often_as_asked() -> None:
    rows = [Row(SamplingParams(xtc_probability=0.3, top_k=1, seed=7), position) for position in range(4000)]
    orders = [row._replace(params=replace(row.params, samplers=("xtc", "top_k"))) for row in rows]
    heads = sum(token != 0 for token in choose(torch.tensor([[2.0, 1.0, -9.0]]).repeat(4000, 1), orders))
    assert abs(heads - 1200) < 4 * math.sqrt(4000 * 0.3 * 0.7)


def test_temperature_0_decides_where_it_stands_in_the_order() -> None:
    """Excluding top choices first leaves the second token as the arg-max; last, there is nothing to exclude."""
    frozen = SamplingParams(temperature=0.0, xtc_probability=1.0, xtc_threshold=0.01)
    before, after = replace(frozen, samplers=("xtc", "temperature")), replace(frozen, samplers=("temperature", "xtc"))
    logits = [3.0, 2.0, -9.0]
    assert choose(torch.tensor([logits, logits]), [Row(before, 0), Row(after, 0)]) == [1, 0]


def test_a_stage_left_out_of_the_order_is_not_applied() -> None:
    params = SamplingParams(temperature=0.0, top_k=1, samplers=())
    drawn = {choose(torch.zeros(1, 4), [Row(params, position)])[0] for position in range(50)}
    assert drawn == {0, 1, 2, 3}
