"""Several passes in a step against one: the same tokens for everybody, whatever happens around them."""

import math
import random
import socket
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from backends import natively_only
from drafting_cases import draft_model, requests_of, speculating
from engine_driver import Run, decode, decode_arriving, drain, engine_core, preempt
from request_mix import request_mix
from tiny_models import FAMILIES, tiny_model

from model.gpt import GPT
from model.native.native_model import Draws, Limit
from model.paged import Span
from server.engine.core import EngineCore
from server.engine.decoding import Decoding
from server.engine.drafting.speculator import DraftingSpeculator
from server.engine.multi_step import MOST_PASSES, SECONDS_IN_A_ROW, MultiStep, Passes
from server.engine.native_runner import NativeRunner
from server.engine.params import SamplingParams
from server.engine.runner import StepResult
from server.engine.speculation import NoSpeculation
from server.engine.types import SequenceRequest, Speculation

pytestmark = natively_only


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(FAMILIES["gqa"])


class AnyNumber(MultiStep):
    """As many passes as a generator says: what a clock says on any machine is among them."""

    def __init__(self, runner: NativeRunner, seed: int) -> None:
        super().__init__(lambda tokens, spans, draws, limit: runner.decode(tokens, spans, draws, self._endless(limit)))
        self._random = random.Random(seed)
        self.choices: Sequence[int] = range(1, MOST_PASSES + 1)
        self.made: list[int] = []

    def num_passes(self, decodings: Sequence[Decoding]) -> int:
        self._seconds_per_pass = SECONDS_IN_A_ROW / self._random.choice(self.choices)
        return super().num_passes(decodings)

    def _endless(self, limit: Limit) -> Limit:
        self.made.append(limit.num_passes)
        return limit._replace(seconds=math.inf)


def with_passes(core: EngineCore, seed: int = 0) -> AnyNumber:
    """Lets the core make several passes in a step; the list of those it made."""
    assert isinstance(core._runner, NativeRunner)
    core._multi_step = several = AnyNumber(core._runner, seed)
    return several


def tokens_of(run: Run) -> dict[int, object]:
    return {id_: (result.tokens, result.finish_reason, result.stop_token) for id_, result in run.results.items()}


KINDS = (
    SamplingParams(max_tokens=1, temperature=0.0),
    SamplingParams(max_tokens=1, temperature=0.8, top_k=20, top_p=0.9),
    SamplingParams(max_tokens=1, temperature=1.5, min_p=0.05, ignore_eos=True),
    SamplingParams(max_tokens=1, stop_token_ids=(5, 17)),
)


def mix(seed: int) -> list[SequenceRequest]:
    """Requests whose choices a pass makes itself, and a few short ones of all other kinds."""
    like = request_mix(16, seed, max_tokens=60)
    simple = [
        replace(one, params=replace(KINDS[place % 4], max_tokens=one.params.max_tokens, seed=one.params.seed))
        for place, one in enumerate(like)
    ]
    return simple + request_mix(10, seed + 100, max_tokens=5, first_id=50)


def arriving(core: EngineCore, requests: Sequence[SequenceRequest]) -> Run:
    return decode_arriving(core, {3 * place: requests[place::5] for place in range(5)})


@pytest.mark.parametrize("num_blocks", [400, 14])
@pytest.mark.parametrize("seed", range(4))
def test_several_passes_give_the_tokens_of_single_ones(model: GPT, seed: int, num_blocks: int) -> None:
    """With requests that arrive and end meanwhile, and others that cannot be plain among them."""
    requests = mix(seed)
    single = arriving(engine_core(model, num_blocks=num_blocks, max_running=8, max_step_tokens=48), requests)
    core = engine_core(model, num_blocks=num_blocks, max_running=8, max_step_tokens=48)
    several = with_passes(core, seed)
    assert tokens_of(arriving(core, requests)) == tokens_of(single)
    assert max(several.made) > 4
    assert core.scheduler.pool.num_free + core.scheduler.pool.num_cached == num_blocks


def greedy(id_: int, max_tokens: int, **changed: object) -> SequenceRequest:
    params = replace(SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True), **changed)  # type: ignore[arg-type]
    return SequenceRequest(id_, (3 + id_, 4, 5), params)


def test_a_step_tells_of_all_its_passes(model: GPT) -> None:
    core = engine_core(model)
    several = with_passes(core)
    several._random = random.Random(3)
    run = decode(core, [greedy(0, 40), greedy(1, 60)])
    assert len(run.stats) == 1 + sum(step.num_prompt_tokens == 0 for step in run.stats)
    for step in run.stats[1:]:
        assert all(part.num_decode_tokens == step.num_passes for part in step.sequences)
        assert step.num_generated_tokens == step.num_passes * len(step.sequences)
        assert step.forward_seconds > 0.0
    assert sum(step.num_passes for step in run.stats) == 60
    assert max(several.made) > 4
    (longest,) = (output for output in run.outputs if output.id == 1 and output.finish_reason == "length")
    assert longest.tokens == tuple(run.results[1].tokens[-len(longest.tokens) :])


def test_preemption_and_abortion_between_steps_of_several_passes_change_nothing_for_others(model: GPT) -> None:
    requests = mix(9)[:12]
    alone = tokens_of(decode(engine_core(model), requests))
    core = engine_core(model, max_running=6)
    several = with_passes(core, 4)

    def disturb(core: EngineCore, step: int) -> None:
        if step % 3 == 2:
            preempt(core, step % 2 - 1)
        if step == 4:
            core.abort((requests[1].id,))

    for request in requests:
        core.add(request)
    disturbed = tokens_of(drain(core, disturb))
    assert disturbed.pop(requests[1].id) != alone.pop(requests[1].id)
    assert disturbed == alone
    assert several.made


def test_whoever_gets_no_more_blocks_without_preempting_somebody_passes_once(model: GPT) -> None:
    """Two sequences fill the pool; the second's tokens behind the sixteenth would cost the first its place."""
    requests = [greedy(0, 45), greedy(1, 45)]
    core = engine_core(model, num_blocks=4)
    several = with_passes(core)
    run = decode(core, requests)
    assert tokens_of(run) == tokens_of(decode(engine_core(model), requests))
    assert several.made
    assert sum(step.num_preemptions for step in run.stats) == 1


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=30, frequency_penalty=0.5),
        SamplingParams(max_tokens=30, min_tokens=30, stop_token_ids=(5,)),
        SamplingParams(max_tokens=30, banned_tokens=(3,)),
        SamplingParams(max_tokens=30, logprobs=0),
        SamplingParams(max_tokens=30, typical_p=0.9),
    ],
    ids=["penalty", "min_tokens", "banned", "logprobs", "typical_p"],
)
def test_choices_that_take_more_than_logits_are_made_in_single_passes(model: GPT, params: SamplingParams) -> None:
    requests = [greedy(0, 60), SequenceRequest(1, (7, 8), params)]
    core = engine_core(model)
    several = with_passes(core)
    run = decode(core, requests)
    assert tokens_of(run) == tokens_of(decode(engine_core(model), requests))
    together = [step for step in run.stats if len(step.sequences) == 2]
    assert len(together) == len(run.results[1].tokens) > 9  # from the tenth on there would be several
    assert several.made  # when the other goes on alone


def test_tokens_are_not_withheld_for_longer_than_min_tokens(model: GPT) -> None:
    request = SequenceRequest(
        0, (3, 4), SamplingParams(max_tokens=60, min_tokens=9, seed=1, stop_token_ids=tuple(range(40)))
    )
    core = engine_core(model)
    several = with_passes(core)
    run = decode(core, [request])
    assert tokens_of(run) == tokens_of(decode(engine_core(model), [request]))
    assert run.results[0].finish_reason == "stop"
    assert 9 <= len(run.results[0].tokens) < 60
    assert several.made


def test_sequences_that_look_for_drafts_pass_once_where_none_are_found(model: GPT) -> None:
    request = replace(greedy(0, 40), speculation=Speculation("ngram"))
    core = engine_core(model, speculator=DraftingSpeculator())
    several = with_passes(core)
    run = decode(core, [request])
    assert any(step.num_draft_tokens == 0 for step in run.stats[2:-1])
    assert not several.made
    core = engine_core(model, speculator=NoSpeculation())
    several = with_passes(core)
    decode(core, [request])
    assert several.made


@pytest.mark.parametrize("num_passes", [2, 3, 4, 8])
def test_numbers_that_are_not_finite_end_one_sequence_after_the_passes_before(model: GPT, num_passes: int) -> None:
    """Its prompt leads there after some tokens, in whichever pass of a step; the other goes on."""
    healthy = decode(engine_core(model), [greedy(0, 30), greedy(1, 30)])
    first, second = healthy.results[0].tokens, healthy.results[1].tokens
    poison = next(token for place, token in enumerate(first) if place > 5 and token not in (*first[:place], *second))
    poisoned = tiny_model(FAMILIES["gqa"])
    with torch.no_grad():
        poisoned.embedding.weight[poison] = float("nan")
    core = engine_core(poisoned)
    several = with_passes(core)
    several.choices = [num_passes]
    run = decode(core, [greedy(0, 30), greedy(1, 30)])
    assert run.results[0].tokens == first[: first.index(poison) + 1]
    assert run.results[0].finish_reason == "error"
    assert (run.results[1].tokens, run.results[1].finish_reason) == (second, "length")
    assert max(several.made) == num_passes


def test_whoever_has_something_to_say_waits_for_one_pass(model: GPT) -> None:
    core = engine_core(model)
    several = with_passes(core)
    several.choices = [MOST_PASSES]
    core.add(greedy(0, 100))
    sent, watched = socket.socketpair()
    core.watch(watched.fileno())
    with sent, watched:
        quiet = [core.step().stats.num_passes for _ in range(5)]
        sent.send(b"a")
        called = [core.step().stats.num_passes for _ in range(3)]
    assert (quiet, called) == ([1, 1, 2, 4, 8], [1, 1, 1])


@pytest.mark.parametrize("kind", ["greedy", "warm", "penalties"])
def test_a_draft_model_guesses_the_same_in_a_row_and_one_by_one(
    model: GPT, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    decode_in_a_row = NativeRunner.decode

    def counted(self: NativeRunner, tokens: Sequence[int], spans: Sequence[Span], draws: Draws, limit: Limit) -> Passes:
        asked.append(limit.num_passes)
        return decode_in_a_row(self, tokens, spans, draws, limit)

    monkeypatch.setattr(NativeRunner, "decode", counted)
    requests = speculating(requests_of(kind), "draft")
    drafts = draft_model(tiny_model(FAMILIES["gqa"], seed=1))
    in_a_row = decode(engine_core(model, speculator=DraftingSpeculator(drafts)), requests)
    assert set(asked) == (set() if kind == "penalties" else {2, 3})
    drafts = draft_model(tiny_model(FAMILIES["gqa"], seed=1))
    drafts._decode = None
    one_by_one = decode(engine_core(model, speculator=DraftingSpeculator(drafts)), requests)
    assert tokens_of(in_a_row) == tokens_of(one_by_one)
    assert [step.drafts for step in in_a_row.stats] == [step.drafts for step in one_by_one.stats]


def passes_of(seconds: float, num_passes: int) -> Passes:
    return Passes((), num_passes, StepResult(torch.empty(0), seconds, b""))


def never(tokens: Sequence[int], spans: Sequence[Span], draws: Draws, limit: Limit) -> Passes:
    raise AssertionError("nothing is computed")


@pytest.mark.parametrize(
    ("seconds", "num_passes", "expected"),
    [(0.02, 1, 1), (0.003, 1, 1), (0.002, 1, 2), (0.004, 4, 5), (1e-6, 1, MOST_PASSES), (0.0, 1, MOST_PASSES)],
)
def test_there_are_as_many_passes_as_fit_in_the_time(
    model: GPT, seconds: float, num_passes: int, expected: int
) -> None:
    core = engine_core(model)
    core.add(greedy(0, 100))
    core.step()
    plan = MultiStep(never)
    plain = list(core._decodings.values())
    assert plan.num_passes(plain) == 1  # nothing is measured
    plan.note(passes_of(seconds, num_passes))
    assert plan.num_passes(plain) == 1  # the sequence has one token
    plain[0].sequence.tokens += [1] * 2
    assert plan.num_passes(plain) == min(expected, 3)
    plain[0].sequence.tokens += [1] * 20
    assert plan.num_passes(plain) == expected
    plain[0].sequence.tokens += [1] * 75
    assert plan.num_passes(plain) == min(expected, 2)
