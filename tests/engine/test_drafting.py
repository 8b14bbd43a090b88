"""Drafts never show: with any drafter, tokens and logprobs are those of decoding without one."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from backends import on_every_backend
from drafting_cases import KINDS, Oracle, draft_model, drafting_by, prompt, requests_of, speculating
from engine_driver import Result, Run, decode, engine_core, preempt
from tiny_models import FAMILIES, GQA, tiny_model

from model.gpt import GPT
from server.engine.core import EngineCore
from server.engine.drafting.draft_model import DraftModel
from server.engine.drafting.speculator import DraftingSpeculator
from server.engine.params import SamplingParams
from server.engine.runner import StepResult
from server.engine.types import DraftMethod, SequenceRequest

pytestmark = on_every_backend
STRANGER = replace(GQA, num_layers=1, hidden_size=32, num_heads=2, num_kv_heads=1)


@pytest.fixture(scope="module")
def target() -> GPT:
    return tiny_model(FAMILIES["gqa"])


@pytest.fixture(scope="module")
def stranger() -> GPT:
    return tiny_model(STRANGER, seed=5)


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain(target: GPT, kind: str, backend: str) -> Mapping[int, Result]:
    return decode(engine_core(target), requests_of(kind)).results


def sums(run: Run) -> tuple[int, int]:
    """Drafted and accepted tokens."""
    drafted, accepted = sum(out.num_drafted for out in run.outputs), sum(out.num_accepted for out in run.outputs)
    assert (drafted, accepted) == (
        sum(stats.num_draft_tokens for stats in run.stats),
        sum(stats.num_accepted_tokens for stats in run.stats),
    )
    return drafted, accepted


@pytest.mark.parametrize("method", ["ngram", "suffix", "draft", "auto"])
@pytest.mark.parametrize("num_tokens", [1, 4, 8])
def test_drafts_change_nothing(
    target: GPT, stranger: GPT, plain: Mapping[int, Result], kind: str, method: DraftMethod, num_tokens: int
) -> None:
    core = engine_core(target, speculator=drafting_by(stranger))
    run = decode(core, speculating(requests_of(kind), method, num_tokens))
    assert run.results == plain
    assert sums(run)[0] > 0


def test_the_target_drafting_for_itself_is_always_right(target: GPT, plain: Mapping[int, Result], kind: str) -> None:
    run = decode(engine_core(target, speculator=drafting_by(target)), speculating(requests_of(kind), "draft"))
    assert run.results == plain
    drafted, accepted = sums(run)
    assert drafted == accepted > 0
    assert len(run.stats) <= 1 + 30 // 5 + 1


@pytest.mark.parametrize("is_wrong", [False, True])
def test_an_oracle_is_always_right_and_its_opposite_never(
    target: GPT, plain: Mapping[int, Result], kind: str, is_wrong: bool
) -> None:
    core = engine_core(target, speculator=Oracle(plain, is_wrong))
    run = decode(core, speculating(requests_of(kind), "draft", 3))
    assert run.results == plain
    drafted, accepted = sums(run)
    assert drafted > 0
    assert accepted == (0 if is_wrong else drafted)


def disturbed(core: EngineCore, step: int) -> None:
    if step % 3 == 2:
        preempt(core, index=step % max(1, len(core.scheduler.running)))


@pytest.mark.parametrize(
    "limits", [{}, {"num_blocks": 18}, {"max_step_tokens": 7, "max_running": 7}, {"max_running": 2}]
)
def test_the_target_stays_right_through_preemption_chunks_and_short_memory(
    target: GPT, plain: Mapping[int, Result], kind: str, limits: Mapping[str, int]
) -> None:
    """Its cache is filled anew after a preemption, and in pieces: any slip would show as a rejected draft."""
    speculator = drafting_by(target, limits.get("num_blocks", 400))
    core = engine_core(target, speculator=speculator, **limits)  # type: ignore[arg-type]
    run = decode(core, speculating(requests_of(kind), "draft"), disturbed)
    assert run.results == plain
    drafted, accepted = sums(run)
    assert drafted == accepted > 0


def again(requests: list[SequenceRequest], first_id: int) -> list[SequenceRequest]:
    return [replace(request, id=first_id + request.id) for request in requests]


def test_prefix_hits_find_what_the_draft_model_has_filled_and_nothing_else(target: GPT) -> None:
    """The first two requests draft and plainly decode; the later ones find both kinds of block in the prefix cache."""
    params = replace(KINDS["warm"], max_tokens=40, ignore_eos=True, seed=7)
    drafting, not_drafting = SequenceRequest(0, prompt(70, 1), params), SequenceRequest(1, prompt(70, 2), params)
    core = engine_core(target, speculator=drafting_by(target))
    first = decode(core, [*speculating([drafting], "draft"), not_drafting]).results
    longer = [
        replace(request, id=10 + request.id, prompt=(*request.prompt, *first[request.id].tokens[:30]))
        for request in (drafting, not_drafting)
    ]
    expected = decode(engine_core(target), longer).results
    run = decode(core, speculating(longer, "draft"))
    assert run.results == expected
    assert run.cached_tokens(10) == run.cached_tokens(11) == 96
    drafted, accepted = sums(run)
    assert drafted == accepted > 0


def test_blocks_reused_for_other_content_are_filled_anew(target: GPT) -> None:
    """A pool of few blocks changes hands all the time; the target as its own draft would reject stale contents."""
    params = replace(KINDS["warm"], max_tokens=20, ignore_eos=True)
    core = engine_core(target, num_blocks=12, speculator=drafting_by(target, 12))
    for round_ in range(6):
        requests = [SequenceRequest(10 * round_ + i, prompt(50 + i, round_ * 3 + i), params) for i in range(4)]
        expected = decode(engine_core(target), requests).results
        # Every other one leaves the draft model's blocks as they were.
        asked = [*speculating(requests[:2], "draft"), *requests[2:]]
        run = decode(core, asked)
        assert run.results == expected
        drafted, accepted = sums(run)
        assert drafted == accepted > 0


def test_no_more_is_drafted_than_room_and_request_allow(target: GPT, stranger: GPT) -> None:
    request = requests_of("greedy", 1, max_tokens=3)[0]
    run = decode(engine_core(target, speculator=drafting_by(stranger)), speculating([request], "draft", 8))
    assert run.outputs[0].num_drafted == 2  # with the step's own token that makes three
    assert len(run.results[0].tokens) == 3


def test_a_draft_model_with_a_shorter_context_stops_at_its_end(target: GPT) -> None:
    short = tiny_model(replace(STRANGER, context_length=48, positions="learned"))
    request = SequenceRequest(0, prompt(30, 3), SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True))
    expected = decode(engine_core(target), [request]).results
    run = decode(engine_core(target, speculator=drafting_by(short)), speculating([request], "draft"))
    assert run.results == expected
    assert run.outputs[0].num_drafted > 0
    assert run.outputs[-10].num_drafted == 0


def damaged(model: GPT) -> DraftModel:
    with torch.no_grad():
        model.embedding.weight[1:8] = float("nan")
    return draft_model(model)


def broken(model: GPT) -> DraftModel:
    def raising(*args: object) -> StepResult:
        raise RuntimeError("out of memory")

    drafts = draft_model(model)
    drafts._runner.run = raising  # type: ignore[method-assign]
    return drafts


@pytest.mark.parametrize("harmed", [damaged, broken])
def test_a_draft_model_that_fails_drafts_no_more_and_changes_nothing(
    target: GPT,
    plain: Mapping[int, Result],
    kind: str,
    harmed: Callable[[GPT], DraftModel],
    caplog: pytest.LogCaptureFixture,
) -> None:
    speculator = DraftingSpeculator(harmed(tiny_model(STRANGER, seed=9)))
    core = engine_core(target, speculator=speculator)
    requests = [*speculating(requests_of(kind)[:2], "draft"), *speculating(requests_of(kind)[2:], "auto")]
    run = decode(core, requests)
    assert run.results == plain
    assert all(stats.has_draft_model_failed for stats in run.stats)
    assert sum("draft model failed" in record.message for record in caplog.records) == 1
    assert not any(counts.method == "draft" for stats in run.stats for counts in stats.drafts)


def test_without_a_draft_model_the_method_drafts_nothing(target: GPT, plain: Mapping[int, Result], kind: str) -> None:
    run = decode(engine_core(target, speculator=DraftingSpeculator()), speculating(requests_of(kind), "draft"))
    assert run.results == plain
    assert sums(run) == (0, 0)


def test_every_draft_is_counted_by_method_and_place(target: GPT, stranger: GPT) -> None:
    requests = requests_of("warm")
    mixed = [*speculating(requests[:2], "draft", 3), *speculating(requests[2:], "suffix", 5)]
    run = decode(engine_core(target, speculator=drafting_by(stranger)), mixed)
    for stats in run.stats:
        assert stats.num_draft_tokens == sum(sum(counts.num_drafted) for counts in stats.drafts)
        assert stats.num_accepted_tokens == sum(sum(counts.num_accepted) for counts in stats.drafts)
        for counts in stats.drafts:
            assert all(right <= drafted for right, drafted in zip(counts.num_accepted, counts.num_drafted, strict=True))
            assert counts.num_drafted[5:] == (0, 0, 0)
    assert {counts.method for stats in run.stats for counts in stats.drafts} == {"draft", "suffix"}


def test_blocks_reserved_for_drafts_that_never_came_go_back(target: GPT) -> None:
    class Silent(Oracle):
        def draft(self, *args: object) -> Mapping[int, tuple[int, ...]]:
            return {}

    core = engine_core(target, speculator=Silent({}))
    request = SequenceRequest(0, prompt(14, 1), SamplingParams(max_tokens=9, ignore_eos=True))
    core.add(speculating([request], "draft", 8)[0])
    core.step()
    assert len(core.scheduler.running[0].blocks) == 1
