"""Classifier-free guidance: the formula, and that a pair's result is a function of the request whatever happens."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from backends import on_every_backend
from engine_driver import Result, decode, drain, engine_core, holds_only_finite, preempt
from request_mix import request_mix
from tiny_models import CONTEXT_LENGTH, FAMILIES, VOCAB_SIZE, tiny_model
from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.modeling_outputs import CausalLMOutput

from model.gpt import GPT
from model.reference import sequence_logits
from server.engine.core import EngineCore
from server.engine.guidance import guide
from server.engine.params import ParameterError, SamplingParams
from server.engine.types import Guidance, SequenceRequest

pytestmark = on_every_backend
GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


def guided_mix(count: int, seed: int = 0, max_prompt: int = 60) -> list[SequenceRequest]:
    """Requests of every kind, each with a negative prompt of its own."""
    generator = random.Random(seed)
    guided = []
    for request in request_mix(count, seed, max_prompt, max_tokens=12):
        length = generator.randint(1, max_prompt)
        negative = tuple(generator.randrange(VOCAB_SIZE) for _ in range(length))
        scale = generator.choice([-0.5, 0.0, 1.5, 3.0, 7.5])
        guided.append(replace(request, guidance=Guidance(negative, scale)))
    return guided


REQUESTS = guided_mix(10)


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(FAMILIES["gqa"])


@pytest.fixture(scope="module")
def expected(model: GPT, backend: str) -> dict[int, Result]:
    return alone(model, REQUESTS)


def alone(model: GPT, requests: list[SequenceRequest]) -> dict[int, Result]:
    return {request.id: decode(engine_core(model), [request]).results[request.id] for request in requests}


def greedy_by_the_formula(model: GPT, request: SequenceRequest) -> list[int]:
    """The whole of both sequences again for every token, in float64."""
    assert request.guidance is not None
    output: list[int] = []
    for _ in range(request.params.max_tokens):
        own, negative = (
            sequence_logits(model, [*prompt, *output])[-1].double().log_softmax(-1)
            for prompt in (request.prompt, request.guidance.negative_prompt)
        )
        output.append(int((negative + request.guidance.scale * (own - negative)).argmax()))
    return output


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.5, 4.0])
def test_greedy_guidance_follows_the_formula(model: GPT, scale: float) -> None:
    request = SequenceRequest(0, tuple(range(5, 40)), GREEDY, guidance=Guidance((7, 8, 9), scale))
    assert decode(engine_core(model), [request]).results[0].tokens == greedy_by_the_formula(model, request)


def test_the_formula_is_that_of_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    own, negative = torch.randn(2, 50, generator=generator)

    class Companion:
        """A model that always says `negative`."""

        def __call__(self, ids: torch.Tensor, **_: object) -> CausalLMOutput:
            return CausalLMOutput(logits=negative.expand(1, ids.shape[1], -1))

    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(2.5, Companion(), use_cache=False)
    theirs = processor(torch.tensor([[1, 2, 3]]), own[None])[0]
    assert torch.equal(guide(own, negative, 2.5), theirs)


def test_a_scale_of_one_is_the_unguided_text(model: GPT) -> None:
    request = SequenceRequest(0, tuple(range(5, 40)), GREEDY)
    guided = replace(request, guidance=Guidance((3,), 1.0))
    assert decode(engine_core(model), [guided]).results == decode(engine_core(model), [request]).results


def test_a_scale_of_zero_decodes_the_negative_prompt(model: GPT) -> None:
    request = SequenceRequest(0, tuple(range(5, 40)), GREEDY)
    guided = replace(request, prompt=(3,), guidance=Guidance(request.prompt, 0.0))
    assert decode(engine_core(model), [guided]).results == decode(engine_core(model), [request]).results


def test_guidance_changes_texts_and_no_logprob(expected: dict[int, Result], model: GPT) -> None:
    plain = alone(model, [replace(request, guidance=None) for request in REQUESTS])
    assert sum(plain[id_].tokens != expected[id_].tokens for id_ in plain) > 6
    both = [
        (mine, theirs)
        for id_ in plain
        for mine, theirs in zip(expected[id_].logprobs[:1], plain[id_].logprobs[:1], strict=True)
    ]
    assert len(both) > 5
    assert all(mine.top_logprobs == theirs.top_logprobs for mine, theirs in both)


def test_company_changes_nothing(model: GPT, expected: dict[int, Result]) -> None:
    plain = [replace(request, id=request.id + 100) for request in request_mix(6, seed=4)]
    run = decode(engine_core(model, max_step_tokens=100), [*plain, *REQUESTS])
    assert {request.id: run.results[request.id] for request in REQUESTS} == expected
    assert {request.id: run.results[request.id] for request in plain} == alone(model, plain)
    assert set(run.results) == {request.id for request in (*REQUESTS, *plain)}  # nobody hears of a companion


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_the_cut_of_the_prompts_changes_nothing(model: GPT, expected: dict[int, Result], chunk: int) -> None:
    for request in REQUESTS[: 2 if chunk == 1 else 5]:
        core = engine_core(model, max_step_tokens=chunk, max_running=min(chunk, 2))
        assert decode(core, [request]).results == {request.id: expected[request.id]}


def test_one_place_is_enough_for_both(model: GPT, expected: dict[int, Result]) -> None:
    core = engine_core(model, max_running=1)
    assert decode(core, REQUESTS[:4]).results == {request.id: expected[request.id] for request in REQUESTS[:4]}


def test_a_prefix_hit_changes_nothing(model: GPT, expected: dict[int, Result]) -> None:
    core = engine_core(model)
    assert decode(core, REQUESTS).results == expected
    assert decode(core, REQUESTS).results == expected


@pytest.mark.parametrize("victim", [0, 1])
def test_a_preemption_at_any_step_changes_nothing(model: GPT, expected: dict[int, Result], victim: int) -> None:
    request = next(request for request in REQUESTS if len(request.prompt) > 30)

    def preempting_at(when: int) -> Callable[[EngineCore, int], None]:
        def disturb(core: EngineCore, step: int) -> None:
            if step == when and core.scheduler.running:
                preempt(core, victim % len(core.scheduler.running))

        return disturb

    steps = len(decode(engine_core(model, max_step_tokens=24), [request]).stats)
    for when in range(1, steps):
        core = engine_core(model, max_step_tokens=24)
        assert decode(core, [request], preempting_at(when)).results == {request.id: expected[request.id]}, when


def test_preempting_somebody_before_every_other_step_changes_nothing(model: GPT, expected: dict[int, Result]) -> None:
    def disturb(core: EngineCore, step: int) -> None:
        if step % 2 and core.scheduler.running:
            preempt(core, step % len(core.scheduler.running))

    assert decode(engine_core(model, max_step_tokens=64), REQUESTS, disturb).results == expected


@pytest.mark.parametrize("num_blocks", [6, 7, 9])
def test_a_cache_that_cannot_hold_both_changes_nothing(
    model: GPT, expected: dict[int, Result], num_blocks: int
) -> None:
    core = engine_core(model, num_blocks, max_step_tokens=40)
    run = decode(core, REQUESTS)
    assert run.results == expected
    assert sum(stats.num_preemptions for stats in run.stats) > 0


@pytest.mark.parametrize("when", [0, 1, 2, 5])
def test_an_abort_frees_both(model: GPT, when: int) -> None:
    core = engine_core(model, max_step_tokens=20)

    def abort(core: EngineCore, step: int) -> None:
        if step == when:
            core.abort([0])

    request = SequenceRequest(0, tuple(range(50)), GREEDY, guidance=Guidance(tuple(range(9)), 2.0))
    run = decode(core, [request], abort)
    assert run.results[0].finish_reason == "abort"
    pool = core.scheduler.pool
    assert pool.num_available == pool.num_blocks
    assert not core.scheduler.running
    assert not core.scheduler.waiting


@pytest.mark.parametrize("chunk", [8, 512])
@pytest.mark.parametrize("is_leader", [True, False])
def test_numbers_that_are_not_finite_end_both(chunk: int, is_leader: bool) -> None:
    """Whichever of the two made them, and nobody gets a block with them in it."""
    model = tiny_model(FAMILIES["gqa"])
    poison = VOCAB_SIZE - 1
    model.embedding.weight.data[poison] = float("nan")
    healthy, sick = tuple(range(30)), (*range(20), poison, 1, 2)
    prompt, negative = (sick, healthy) if is_leader else (healthy, sick)
    mate = SequenceRequest(1, tuple(range(40)), GREEDY)
    core = engine_core(model, max_step_tokens=chunk, max_running=min(chunk, 64))
    results = decode(core, [SequenceRequest(0, prompt, GREEDY, guidance=Guidance(negative, 2.0)), mate]).results
    assert results == {0: Result(finish_reason="error")} | alone(model, [mate])
    assert holds_only_finite(core)


def test_no_output_asked_for_is_none_computed(model: GPT) -> None:
    request = SequenceRequest(0, (1, 2), replace(GREEDY, max_tokens=0), guidance=Guidance((3,), 2.0))
    run = drain(started(model, request))
    assert (run.results[0].tokens, run.results[0].finish_reason, len(run.stats)) == ([], "length", 1)


def started(model: GPT, request: SequenceRequest) -> EngineCore:
    core = engine_core(model)
    core.add(request)
    return core


def test_a_negative_prompt_that_leaves_no_room_is_refused(model: GPT) -> None:
    guidance = Guidance((1,) * (CONTEXT_LENGTH - 10), 2.0)
    with pytest.raises(ParameterError, match=f"max_tokens is 20; with {CONTEXT_LENGTH - 10} negative_prompt tokens"):
        started(model, SequenceRequest(0, (1, 2), GREEDY, guidance=guidance))


@pytest.mark.parametrize(("negative", "message"), [((), "is empty"), ((VOCAB_SIZE,), "holds token id 97")])
def test_a_bad_negative_prompt_is_refused(model: GPT, negative: tuple[int, ...], message: str) -> None:
    with pytest.raises(ParameterError, match=f"negative_prompt {message}"):
        started(model, SequenceRequest(0, (1, 2), GREEDY, guidance=Guidance(negative, 2.0)))


@pytest.mark.parametrize("scale", [-20.5, 21.0, float("nan")])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(ParameterError, match=r"guidance_scale is .*; it must be between -20\.0 and 20\.0"):
        Guidance((1,), scale)
