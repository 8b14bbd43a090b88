"""Drafts of guided sequences: the pair's result is the same with any drafter, whatever happens."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from backends import on_every_backend
from drafting_cases import Oracle, drafting_by, requests_of, speculating
from engine_driver import Disturbance, Result, Run, decode, drain, engine_core, holds_only_finite, leave_alone, preempt
from request_mix import request_mix
from test_guidance import GREEDY, REQUESTS, alone
from tiny_models import FAMILIES, VOCAB_SIZE, tiny_model

from model.gpt import GPT
from model.paged import Span
from server.engine.core import EngineCore
from server.engine.runner import StepResult
from server.engine.scheduler import Chunk
from server.engine.speculation import Speculator
from server.engine.tracing_types import TokenTrace, TraceOptions
from server.engine.types import MAX_DRAFT_TOKENS, DraftMethod, Guidance, SequenceRequest

# Guided requests of every kind, and some of few different tokens, where lookups find something.
pytestmark = on_every_backend
DRAFTING = [
    *REQUESTS,
    *(
        replace(request, id=20 + request.id, guidance=Guidance((4, 5, 6) * (1 + 5 * request.id), 1.5))
        for request in requests_of("warm", max_tokens=20)
    ),
]
Drafter = tuple[DraftMethod, str]
DRAFTERS: Mapping[str, Drafter] = {
    "ngram": ("ngram", ""),
    "suffix": ("suffix", ""),
    "auto": ("auto", ""),
    "the unguided target": ("draft", ""),
    "what comes": ("draft", "right"),
    "something else": ("draft", "wrong"),
}


@dataclass(frozen=True)
class Surroundings:
    """A core to decode in, and what happens there."""

    num_blocks: int = 400
    max_step_tokens: int = 512
    max_running: int = 64
    preemption: float = 0.0  # the probability of one before every step
    times: int = 1  # so often the same is asked for

    def disturbance(self) -> Disturbance:
        generator = random.Random(5)

        def disturb(core: EngineCore, step: int) -> None:
            if core.scheduler.running and generator.random() < self.preemption:
                preempt(core, generator.randrange(len(core.scheduler.running)))

        return disturb if self.preemption else leave_alone


SURROUNDINGS = {
    "roomy": Surroundings(),
    "preempting": Surroundings(preemption=0.4),
    "with hardly any blocks": Surroundings(num_blocks=10),
    "in small steps": Surroundings(max_step_tokens=13, max_running=5),
    "for three": Surroundings(max_running=3, preemption=0.1),
    "with everything cached": Surroundings(times=2),
}


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(FAMILIES["gqa"])


@pytest.fixture(scope="module")
def undrafted(model: GPT, backend: str) -> dict[int, Result]:
    return alone(model, DRAFTING)


def speculator_of(kind: str, model: GPT, truth: Mapping[int, Result], num_blocks: int) -> Speculator:
    return Oracle(truth, kind == "wrong") if kind else drafting_by(model, num_blocks)


def drafts(run: Run) -> tuple[int, int]:
    """Drafted and accepted."""
    return sum(output.num_drafted for output in run.outputs), sum(output.num_accepted for output in run.outputs)


def check_sizes(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no step run more tokens, drafts of both included, than it may."""
    run = core._runner.run

    def checked(tokens, *rest):  # type: ignore[no-untyped-def]
        assert len(tokens) <= core.scheduler.max_step_tokens
        return run(tokens, *rest)

    monkeypatch.setattr(core._runner, "run", checked)


@pytest.mark.parametrize("around", SURROUNDINGS.values(), ids=SURROUNDINGS)
@pytest.mark.parametrize(("method", "kind"), DRAFTERS.values(), ids=DRAFTERS)
def test_drafts_change_nothing(
    model: GPT,
    undrafted: dict[int, Result],
    around: Surroundings,
    method: DraftMethod,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speculator = speculator_of(kind, model, undrafted, around.num_blocks)
    core = engine_core(model, around.num_blocks, around.max_running, around.max_step_tokens, speculator=speculator)
    check_sizes(core, monkeypatch)
    for _ in range(around.times):
        run = decode(core, speculating(DRAFTING, method), around.disturbance())
        assert run.results == undrafted
        drafted, accepted = drafts(run)
        assert drafted > 0 or method != "draft"  # lookups find nothing everywhere
        assert accepted == drafted or kind != "right"
        assert accepted == 0 or kind != "wrong"
    assert core.scheduler.pool.num_available == around.num_blocks


@pytest.mark.parametrize(("method", "kind"), DRAFTERS.values(), ids=DRAFTERS)
def test_drafts_of_one_alone_change_nothing(
    model: GPT, undrafted: dict[int, Result], method: DraftMethod, kind: str
) -> None:
    num_drafted = 0
    for num_tokens, request in enumerate(DRAFTING[-MAX_DRAFT_TOKENS:], start=1):
        core = engine_core(model, speculator=speculator_of(kind, model, undrafted, 400))
        run = decode(core, speculating([request], method, num_tokens))
        assert run.results == {request.id: undrafted[request.id]}
        num_drafted += drafts(run)[0]
    assert num_drafted > 0


def test_drafts_beside_unguided_company_change_nothing(model: GPT, undrafted: dict[int, Result]) -> None:
    plain = [replace(request, id=request.id + 100) for request in request_mix(6, seed=4)]
    truth = {**undrafted, **alone(model, plain)}
    core = engine_core(model, max_step_tokens=60, speculator=Oracle(truth))
    assert decode(core, speculating([*plain, *DRAFTING], "draft")).results == truth


def test_right_drafts_save_steps(model: GPT) -> None:
    request = SequenceRequest(0, tuple(range(5, 40)), GREEDY, guidance=Guidance((7, 8, 9), 1.5))
    plain = decode(engine_core(model), [request])
    core = engine_core(model, speculator=Oracle(plain.results))
    run = decode(core, speculating([request], "draft", 4))
    assert (len(plain.stats), len(run.stats)) == (20, 4)
    assert drafts(run) == (16, 16)
    # Neither of the two computes anew what was accepted.
    assert {step.num_decode_tokens for stats in run.stats[1:] for step in stats.sequences} == {1}


def test_room_for_drafts_that_were_wrong_goes_back_in_both(model: GPT) -> None:
    request = SequenceRequest(0, tuple(range(14)), replace(GREEDY, max_tokens=9), guidance=Guidance((1,) * 14, 1.5))
    expected = alone(model, [request])
    core = engine_core(model, speculator=Oracle(expected, is_wrong=True))
    core.add(speculating([request], "draft", 8)[0])
    assert core.step().stats.num_draft_tokens == 8
    assert [len(sequence.blocks) for sequence in core.scheduler.running] == [1, 1]
    assert drain(core).results[0].tokens == expected[0].tokens[1:]


def test_one_that_runs_without_its_companion_drafts_nothing(model: GPT, undrafted: dict[int, Result]) -> None:
    core = engine_core(model, max_running=1, speculator=Oracle(undrafted))
    run = decode(core, speculating(DRAFTING[:3], "draft"))
    assert run.results == {request.id: undrafted[request.id] for request in DRAFTING[:3]}
    assert drafts(run) == (0, 0)


def test_a_block_that_only_one_of_the_two_could_have_is_given_to_neither(model: GPT) -> None:
    """Both prompts end with a block, and of the two blocks for the first tokens behind them one is there."""
    request = SequenceRequest(0, tuple(range(16)), replace(GREEDY, max_tokens=9), guidance=Guidance((1,) * 16, 1.5))
    for num_blocks, reserved in ((3, 0), (4, 4)):
        core = engine_core(model, num_blocks, speculator=Oracle({0: Result([5] * 9)}, is_wrong=True))
        core.add(speculating([request], "draft")[0])
        chunks = core.scheduler.schedule(core._speculator.num_wanted).chunks
        assert [chunk.num_drafts for chunk in chunks] == [reserved, 0]
        assert core.scheduler.pool.num_available == (num_blocks - 2 if not reserved else 0)


@pytest.mark.parametrize("is_leader_fine", [False, True])
def test_drafts_that_are_not_finite_are_undone_in_both(is_leader_fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sequence goes on without drafts, though its own numbers may be fine and wait for its companion's."""
    model = tiny_model(FAMILIES["gqa"])
    poison = VOCAB_SIZE - 1
    model.embedding.weight.data[poison] = float("nan")
    params = replace(GREEDY, banned_tokens=(poison,), logprobs=1)
    request = SequenceRequest(0, tuple(range(30)), params, guidance=Guidance(tuple(range(9, 50)), 2.0))

    class Poisoning(Oracle):
        def _guess(self, chunk: Chunk) -> tuple[int, ...]:
            return (poison,) * chunk.num_drafts

    expected = alone(model, [request])
    core = engine_core(model, speculator=Poisoning(expected) if not is_leader_fine else Oracle(expected))
    if is_leader_fine:
        spoil_companions_drafts(core, monkeypatch)
    run = decode(core, speculating([request], "draft"))
    assert run.results == expected
    assert len(run.stats) == 1 + 20
    assert holds_only_finite(core)


def spoil_companions_drafts(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Report the very last token of steps with drafts, which is the companion's, as not finite."""
    run = core._runner.run

    def spoiled(tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int]) -> StepResult:
        result = run(tokens, spans, wanted)
        has_drafts = len(wanted) > len(spans)
        return replace(result, is_finite=[*result.is_finite[:-1], result.is_finite[-1] and not has_drafts])

    monkeypatch.setattr(core._runner, "run", spoiled)


def test_traces_of_drafted_tokens_are_those_of_tokens_without_drafts(model: GPT, undrafted: dict[int, Result]) -> None:
    requests = [replace(request, trace=TraceOptions(top=3)) for request in DRAFTING]

    def traces(run: Run, id_: int) -> list[TokenTrace]:
        own = [output.traces for output in run.outputs if output.id == id_]
        return [replace(trace, drafts=()) for part in own for trace in part]

    plain = decode(engine_core(model), requests)
    run = decode(engine_core(model, speculator=drafting_by(model)), speculating(requests, "draft"))
    assert run.results == undrafted
    for request in requests:
        assert traces(run, request.id) == traces(plain, request.id)
        assert all(trace.stages[0].name == "guidance" for trace in traces(run, request.id))
