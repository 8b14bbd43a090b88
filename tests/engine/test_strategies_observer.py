"""Who looks at a choice sees every stage that ran and the noise that decided, and changes nothing."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies_oracle import Case
from test_noise import noise_of
from test_strategies import CASES, QUARTERS, VALUES, VOCAB_SIZE, params_of, row_of
from torch import Tensor

from server.engine.params import SamplingParams
from server.engine.sampler import Row, choose
from server.engine.sampling.order import DEFAULT_ORDER

ALL_ON = SamplingParams(
    logit_bias=((1, 0.5),),
    repetition_penalty=1.1,
    frequency_penalty=0.1,
    presence_penalty=0.1,
    dry_multiplier=0.5,
    temperature=0.9,
    top_n_sigma=3.0,
    top_k=12,
    typical_p=0.99,
    epsilon_cutoff=1e-4,
    eta_cutoff=1e-4,
    top_a=1e-3,
    top_p=0.99,
    min_p=1e-3,
    xtc_probability=1.0,
    seed=3,
)

Sight = tuple[str, list[int], Tensor, Tensor]


def watch(logits: Tensor, rows: list[Row]) -> tuple[list[int], list[Sight]]:
    seen: list[Sight] = []
    tokens = choose(logits, rows, lambda stage, indices, before, after: seen.append((stage, [*indices], before, after)))
    return tokens, seen


def test_stages_are_seen_in_the_order_of_the_request() -> None:
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    _, seen = watch(logits.clone(), [row_of(Case(ALL_ON, (1, 2), (3,)))])
    assert [stage for stage, *_ in seen] == ["constraints", *DEFAULT_ORDER, "draw"]
    backwards = replace(ALL_ON, samplers=DEFAULT_ORDER[::-1])
    _, seen = watch(logits.clone(), [row_of(Case(backwards, (1, 2), (3,)))])
    assert [stage for stage, *_ in seen] == ["constraints", *DEFAULT_ORDER[::-1], "draw"]
    mirostat = replace(ALL_ON, mirostat=2)
    _, seen = watch(logits.clone(), [row_of(Case(mirostat, (1, 2), (3,), mu=5.0))])
    assert [stage for stage, *_ in seen] == ["constraints", *DEFAULT_ORDER[:5], "mirostat", "draw"]


def test_a_greedy_row_is_seen_to_be_decided_by_the_temperature() -> None:
    _, seen = watch(torch.tensor([[1.0, 3.0, 2.0]]), [Row(SamplingParams(temperature=0.0, top_p=0.5), 0)])
    assert [stage for stage, *_ in seen] == ["temperature", "draw"]
    assert seen[0][3].isfinite().tolist() == [[False, True, False]]


ROWS = st.lists(
    st.tuples(params_of(list(VALUES), st.just(DEFAULT_ORDER)), st.lists(QUARTERS, min_size=13, max_size=13), CASES),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=150)
@given(ROWS)
def test_looking_changes_nothing_and_what_is_seen_fits_together(
    drawn: list[tuple[SamplingParams, list[float], tuple[list[int], list[int], int]]],
) -> None:
    """Each row's logits after a stage are those before its next; the draw's arg-max is the token."""
    cases = [Case(params, *history) for params, _, history in drawn]
    logits = torch.tensor([row for _, row, _ in drawn])
    tokens, seen = watch(logits.clone(), [row_of(case) for case in cases])
    assert tokens == choose(logits.clone(), [row_of(case) for case in cases])
    latest = dict(enumerate(logits))
    for stage, indices, before, after in seen:
        for index, old, new in zip(indices, before, after, strict=True):
            assert torch.equal(old, latest[index])
            latest[index] = new
            if stage == "draw":
                assert int(new.argmax()) == tokens[index]
    assert seen[-1][0] == "draw"
    assert seen[-1][1] == list(range(len(cases)))


def test_the_noise_of_the_draw_can_be_read_off() -> None:
    logits = torch.tensor([[0.5, 1.0, -2.0, 0.25, 0.0]])
    _, seen = watch(logits.clone(), [Row(SamplingParams(seed=11), 4)])
    _, _, scaled, perturbed = seen[-1]
    assert torch.equal(perturbed - scaled.double(), (scaled.double() + noise_of(11, 4, 5)) - scaled.double())
