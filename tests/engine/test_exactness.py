"""The contract: what a request gets is a function of the request, bit for bit, whatever happens around it."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from backends import on_every_backend
from engine_driver import Disturbance, Result, decode, decode_arriving, drain, engine_core, preempt
from request_mix import request_mix, several
from tiny_models import CORNERS, FAMILIES, tiny_model

from model.gpt import GPT
from server.engine.core import EngineCore
from server.engine.types import SequenceRequest

pytestmark = on_every_backend
DTYPES = (torch.float32, torch.bfloat16)
# Half of the matrix by default, each family and each precision in it; the rest with the slow tests.
BY_DEFAULT = {("gpt", torch.float32), ("gqa", torch.bfloat16), ("moe", torch.float32)}
MATRIX = [
    pytest.param((name, dtype), marks=() if (name, dtype) in BY_DEFAULT else pytest.mark.slow, id=f"{name}-{dtype}")
    for name in FAMILIES
    for dtype in DTYPES
]
REQUESTS = request_mix(32)
SHORT = request_mix(4, seed=9, max_prompt=40, max_tokens=10)


@dataclass(frozen=True)
class Case:
    """A model and what each request gets from it when it has an engine to itself."""

    model: GPT
    expected: dict[int, Result]

    def core(self, num_blocks: int = 400, max_running: int = 64, max_step_tokens: int = 512) -> EngineCore:
        return engine_core(self.model, num_blocks, max_running, max_step_tokens)


def alone(model: GPT, requests: list[SequenceRequest]) -> dict[int, Result]:
    return {request.id: decode(engine_core(model), [request]).results[request.id] for request in requests}


@pytest.fixture(scope="module", params=MATRIX)
def case(request: pytest.FixtureRequest, backend: str) -> Case:
    name, dtype = request.param
    model = tiny_model(FAMILIES[name], dtype)
    return Case(model, alone(model, REQUESTS))


def of(case: Case, requests: list[SequenceRequest]) -> dict[int, Result]:
    return {request.id: case.expected[request.id] for request in requests}


def test_the_requests_are_worth_comparing(case: Case) -> None:
    greedy = {tuple(case.expected[request.id].tokens) for request in REQUESTS if request.params.temperature == 0}
    assert len(greedy) > 5
    assert len({token for tokens in greedy for token in tokens}) > 15
    reasons = {result.finish_reason for result in case.expected.values()}
    assert reasons == {"stop", "length"}
    assert len({len(result.tokens) for result in case.expected.values()}) > 8


@pytest.mark.parametrize("size", [2, 7, 32])
def test_a_batch_changes_nothing(case: Case, size: int) -> None:
    requests = REQUESTS[:size]
    assert decode(case.core(), requests).results == of(case, requests)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_joining_and_leaving_batch_mates_change_nothing(case: Case, seed: int) -> None:
    generator = random.Random(seed)
    arrivals: dict[int, list[SequenceRequest]] = {}
    for request in REQUESTS:
        arrivals.setdefault(generator.randrange(30), []).append(request)
    assert decode_arriving(case.core(max_step_tokens=64), arrivals).results == case.expected


def test_aborted_batch_mates_change_nothing(case: Case) -> None:
    requests, passers_by = REQUESTS[:8], REQUESTS[8:20]

    def abort_some(core: EngineCore, step: int) -> None:
        core.abort([request.id for request in passers_by[3 * step : 3 * step + 3]])

    core = case.core(max_step_tokens=100)
    for pair in zip(requests, passers_by, strict=False):
        for request in pair:
            core.add(request)
    results = drain(core, abort_some).results
    assert {request.id: results[request.id] for request in requests} == of(case, requests)


@pytest.mark.parametrize("chunk", [1, 3, 16, 512])
def test_the_cut_of_a_prompt_changes_nothing(case: Case, chunk: int) -> None:
    requests = [request for request in REQUESTS if len(request.prompt) > 30][:6]
    for request in requests[: 1 if chunk == 1 else 2]:
        assert decode(case.core(max_step_tokens=chunk), [request]).results == of(case, [request])
    assert decode(case.core(max_step_tokens=chunk, max_running=min(chunk, 5)), requests).results == of(case, requests)


def test_a_prefix_hit_changes_nothing(case: Case) -> None:
    core = case.core(num_blocks=600)
    decode(core, REQUESTS)
    again = [replace(request, id=request.id + 100) for request in REQUESTS]
    run = decode(core, again)
    assert {id_ - 100: result for id_, result in run.results.items()} == case.expected
    hits = [run.cached_tokens(request.id) for request in again if request.params.prompt_logprobs is None]
    assert sum(hit > 0 for hit in hits) > 10


def test_a_hit_of_the_whole_prompt_changes_nothing(case: Case) -> None:
    """Prompts of whole blocks, whose last block is cached too but whose last token must be computed all the same."""
    base = [request for request in REQUESTS if len(request.prompt) >= 48 and request.params.prompt_logprobs is None]
    whole = [replace(request, prompt=request.prompt[:48]) for request in base[:3]]
    expected = alone(case.model, whole)
    core = case.core()
    assert decode(core, whole).results == expected
    run = decode(core, whole)
    assert run.results == expected
    assert {run.cached_tokens(request.id) for request in whole} == {32}


def test_a_conversation_continues_as_if_it_were_new(case: Case) -> None:
    """The next prompt holds the previous output, whose blocks were cached as it was decoded."""
    first = [request for request in REQUESTS if request.params.prompt_logprobs is None][:4]
    core = case.core()
    said = decode(core, first).results
    second = [
        replace(request, id=request.id + 100, prompt=(*request.prompt, *said[request.id].tokens, 7, 8, 9))
        for request in first
    ]
    run = decode(core, second)
    assert run.results == alone(case.model, second)
    assert max(run.cached_tokens(request.id) for request in second) >= 48


def preempting_at(when: int, victim: int) -> Disturbance:
    def disturb(core: EngineCore, step: int) -> None:
        if step == when and core.scheduler.running:
            preempt(core, victim % len(core.scheduler.running))

    return disturb


def check_every_preemption(case: Case, victims: Callable[[int], tuple[int, ...]]) -> None:
    expected = alone(case.model, SHORT)
    core = partial(case.core, max_step_tokens=24)
    undisturbed = decode(core(), SHORT)
    assert undisturbed.results == expected
    for when in range(1, len(undisturbed.stats)):
        for victim in victims(when):
            assert decode(core(), SHORT, preempting_at(when, victim)).results == expected, (when, victim)


def test_a_preemption_at_any_step_changes_nothing(case: Case) -> None:
    check_every_preemption(case, lambda when: (when % len(SHORT),))


@pytest.mark.slow
def test_a_preemption_of_any_sequence_at_any_step_changes_nothing(case: Case) -> None:
    check_every_preemption(case, lambda when: tuple(range(len(SHORT))))


def test_preempting_somebody_before_every_step_changes_nothing(case: Case) -> None:
    def disturb(core: EngineCore, step: int) -> None:
        if step % 2 and core.scheduler.running:
            preempt(core, step % len(core.scheduler.running))

    assert decode(case.core(), REQUESTS[:6], disturb).results == of(case, REQUESTS[:6])


def test_a_crowded_cache_changes_nothing(case: Case) -> None:
    run = decode(case.core(num_blocks=12, max_step_tokens=48), REQUESTS[:20])
    assert run.results == of(case, REQUESTS[:20])
    assert sum(stats.num_preemptions for stats in run.stats) > 1


def test_a_second_thread_changes_nothing(case: Case, set_threads: Callable[[int], None]) -> None:
    set_threads(2)
    assert decode(case.core(max_step_tokens=200), REQUESTS[:12]).results == of(case, REQUESTS[:12])


def test_choices_asked_for_together_are_those_asked_for_one_by_one(case: Case) -> None:
    original = next(request for request in REQUESTS if request.params.temperature > 0 and len(request.prompt) > 40)
    choices = several(original, 3, first_id=0)
    results = decode(case.core(), choices).results
    assert results == alone(case.model, choices)
    assert len({tuple(result.tokens) for result in results.values()}) == 3


@pytest.mark.parametrize("name", CORNERS)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_corners_of_the_configuration_are_exact(name: str, dtype: torch.dtype) -> None:
    """Contexts of up to four splits, in company, in chunks, crowded and again."""
    model = tiny_model(CORNERS[name], dtype)
    requests = request_mix(8, seed=3, max_prompt=220, max_tokens=16)
    expected = alone(model, requests)
    core = engine_core(model, num_blocks=30, max_step_tokens=50)
    assert decode(core, requests).results == expected
    assert decode(core, requests).results == expected
    assert decode(engine_core(model), requests).results == expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_everything_at_once_changes_nothing(case: Case, seed: int, set_threads: Callable[[int], None]) -> None:
    """Random arrivals, limits, preemptions and threads, over contexts of several splits."""
    generator = random.Random(seed)
    requests = request_mix(24, seed=100 + seed, max_prompt=200, max_tokens=40)
    expected = alone(case.model, requests)
    set_threads(1 + seed % 2)
    limit = generator.choice([5, 20, 70, 300])
    core = case.core(generator.choice([18, 40, 200]), min(limit, generator.randint(2, 24)), limit)
    order = iter(generator.sample(requests, len(requests)))

    def disturb(core: EngineCore, step: int) -> None:
        if step % 3 == 0 and (request := next(order, None)) is not None:
            core.add(request)
        if generator.random() < 0.1 and core.scheduler.running:
            preempt(core, generator.randrange(len(core.scheduler.running)))

    assert drain(core, disturb, more_until=3 * len(requests)).results == expected
