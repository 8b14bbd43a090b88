"""Weights poisoned for one token: its sequence ends with an error, and nobody else ever notices."""

from dataclasses import replace

import pytest
import torch
from backends import on_every_backend
from engine_driver import Result, decode, drain, engine_core, holds_only_finite, preempt
from tiny_models import FAMILIES, VOCAB_SIZE, tiny_model

from model.gpt import GPT
from server.engine.core import EngineCore
from server.engine.params import SamplingParams
from server.engine.types import SequenceRequest

pytestmark = on_every_backend
POISON = 96  # its embedding is not a number
PARAMS = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True, banned_tokens=(POISON,), logprobs=1)


@pytest.fixture(scope="module", params=list(FAMILIES))
def poisoned(request: pytest.FixtureRequest) -> GPT:
    model = tiny_model(FAMILIES[request.param])
    with torch.no_grad():
        model.embedding.weight[POISON] = float("nan")
    return model


def healthy(id_: int, length: int, params: SamplingParams = PARAMS) -> SequenceRequest:
    return SequenceRequest(id_, tuple((13 * i + 7 * id_) % POISON for i in range(length)), params)


def sick(id_: int, before: tuple[int, ...], after: int) -> SequenceRequest:
    return SequenceRequest(id_, (*before, POISON, *[3] * after), PARAMS)


def alone(model: GPT, request: SequenceRequest) -> Result:
    return decode(engine_core(model), [request]).results[request.id]


def test_only_the_poisoned_sequence_ends_with_an_error(poisoned: GPT) -> None:
    """It holds block 0 and is shorter and longer than its mates, which share every tile group with it."""
    mates = [healthy(id_, length) for id_, length in enumerate((1, 5, 19, 64, 90, 150), start=2)]
    expected = {mate.id: alone(poisoned, mate) for mate in mates}
    assert {result.finish_reason for result in expected.values()} == {"length"}
    for after in (0, 10, 100):
        core = engine_core(poisoned)
        results = decode(core, [sick(1, (5,), after), *mates]).results
        assert results.pop(1) == Result(finish_reason="error")
        assert results == expected
        assert holds_only_finite(core)


def test_poison_left_in_its_blocks_would_be_found(poisoned: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    core = engine_core(poisoned)
    monkeypatch.setattr(core._runner, "scrub", lambda blocks: None)
    decode(core, [sick(1, tuple(range(40)), 0)])
    assert not holds_only_finite(core)


def test_a_poisoned_prompt_logprob_is_an_error_too(poisoned: GPT) -> None:
    given = sick(1, tuple(range(20)), 5)
    described = replace(given, params=replace(PARAMS, prompt_logprobs=1, max_tokens=0))
    core = engine_core(poisoned, max_step_tokens=16)
    assert decode(core, [described]).results[1].finish_reason == "error"
    assert holds_only_finite(core)


def test_a_sequence_that_chooses_poison_ends_with_an_error_and_what_it_had_said(poisoned: GPT) -> None:
    forced = replace(PARAMS, banned_tokens=(), allowed_tokens=(POISON,))
    result = alone(poisoned, healthy(1, 20, forced))
    assert (result.tokens, result.finish_reason) == ([POISON], "error")


def test_later_users_of_its_blocks_are_unharmed(poisoned: GPT) -> None:
    core = engine_core(poisoned, num_blocks=10)
    decode(core, [sick(1, tuple(range(10)), 100)])
    later = [healthy(id_, 40) for id_ in (2, 3, 4)]
    assert decode(core, later).results == {request.id: alone(poisoned, request) for request in later}


def test_its_blocks_are_not_found_by_prefix(poisoned: GPT) -> None:
    core = engine_core(poisoned)
    given = sick(1, tuple(range(40)), 30)
    decode(core, [given])
    again = decode(core, [replace(given, id=2)])
    assert again.results[2].finish_reason == "error"
    assert again.cached_tokens(2) == 0


def leave_half_way(core: EngineCore, how: str) -> None:
    """Compute the poison, but not yet the logits that would tell, and then go."""
    core.add(sick(1, tuple(range(20)), 100))
    core.step()
    if how == "preemption":
        preempt(core)
    core.abort([1])
    core.step()


@pytest.mark.parametrize("how", ["abort", "preemption"])
def test_poison_aborted_before_its_logits_does_not_stay_in_the_cache(poisoned: GPT, how: str) -> None:
    core = engine_core(poisoned, num_blocks=10, max_step_tokens=40)
    leave_half_way(core, how)
    assert holds_only_finite(core)


def test_poison_aborted_before_its_logits_does_not_harm_later_users_of_its_blocks(poisoned: GPT) -> None:
    core = engine_core(poisoned, num_blocks=10, max_step_tokens=40)
    leave_half_way(core, "abort")
    later = [healthy(id_, 20) for id_ in range(2, 7)]
    expected = {request.id: alone(poisoned, request) for request in later}
    assert drain_of(core, later) == expected


@pytest.mark.parametrize("is_aborted", [True, False])
def test_poison_does_not_reach_those_who_share_the_healthy_part_of_its_prompt(poisoned: GPT, is_aborted: bool) -> None:
    """A key that is not a number spoils every query of its tile, and so the first block, which is published."""
    core = engine_core(poisoned, max_step_tokens=40)
    core.add(sick(1, tuple(range(20)), 100))
    core.step()
    if is_aborted:
        core.abort([1])
    sharer = SequenceRequest(2, (*range(20), 50, 51), PARAMS)
    assert drain_of(core, [sharer])[2] == alone(poisoned, sharer)


def drain_of(core: EngineCore, requests: list[SequenceRequest]) -> dict[int, Result]:
    for request in requests:
        core.add(request)
    return {id_: result for id_, result in drain(core).results.items() if id_ != 1}


@pytest.mark.usefixtures("backend")
def test_logits_may_overflow_where_the_hidden_state_does_not() -> None:
    model = tiny_model(FAMILIES["gqa"])
    request = healthy(1, 20)
    assert alone(model, request).finish_reason == "length"
    with torch.no_grad():
        model.unembedding.weight[VOCAB_SIZE - 1] = 3e38
    assert alone(model, request) == Result(finish_reason="error")
