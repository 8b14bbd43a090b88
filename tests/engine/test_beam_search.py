"""Beam search: equal to a dumb one, to transformers', and to itself whatever happens around it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from backends import on_every_backend
from beam_oracle import beam_oracle
from engine_driver import EOS, Result, Run, decode, drain, engine_core, holds_only_finite, preempt
from request_mix import request_mix
from tiny_models import FAMILIES, VOCAB_SIZE, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from model.checkpoint import load_checkpoint
from model.gpt import GPT
from server.engine.core import EngineCore
from server.engine.params import ParameterError, SamplingParams
from server.engine.selfcheck import make_exact
from server.engine.types import BeamSearch, Guidance, SequenceRequest

pytestmark = on_every_backend
ENDINGS = tuple(range(3, 16))  # of the comparison with transformers, and what fills its rows up
PADDING = 1

PROMPT = tuple(range(5, 30))
PARAMS = SamplingParams(max_tokens=10, stop_token_ids=tuple(range(40, 60)))
RULES = [
    BeamSearch(1),
    BeamSearch(2),
    BeamSearch(3, length_penalty=0.0),
    BeamSearch(4, early_stopping=True),
    BeamSearch(5, length_penalty=2.0, early_stopping="never"),
    BeamSearch(3, length_penalty=-1.0, early_stopping="never"),
    BeamSearch(4, num_groups=2, diversity_penalty=0.7),
    BeamSearch(6, num_groups=3, diversity_penalty=5.0, length_penalty=0.5),
    BeamSearch(4, num_groups=4, diversity_penalty=1.0, early_stopping=True),
]


def ranks(request: SequenceRequest, first_id: int = 0) -> list[SequenceRequest]:
    """One sequence for every hypothesis of a search."""
    assert request.beams is not None
    return [
        replace(request, id=first_id + rank, beams=replace(request.beams, rank=rank))
        for rank in range(request.beams.width)
    ]


def searches(count: int, seed: int = 0) -> list[SequenceRequest]:
    """Prompts, limits, penalties and rules of all sorts; every rank of every search."""
    generator = random.Random(seed)
    requests = []
    for index in range(count):
        prompt = tuple(generator.randrange(VOCAB_SIZE) for _ in range(generator.randint(1, 60)))
        params = SamplingParams(
            max_tokens=generator.randint(1, 24),
            stop_token_ids=tuple(generator.sample(range(VOCAB_SIZE), generator.choice([0, 3, 20]))),
            min_tokens=0,
            repetition_penalty=generator.choice([1.0, 1.2]),
            frequency_penalty=generator.choice([0.0, 0.5]),
            logprobs=generator.choice([None, 0, 3]),
            prompt_logprobs=generator.choice([None, 1]),
        )
        requests += ranks(SequenceRequest(0, prompt, params, beams=generator.choice(RULES)), 10 * index)
    return requests


SEARCHES = searches(6)


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(FAMILIES["gqa"])


@pytest.fixture(scope="module")
def expected(model: GPT, backend: str) -> dict[int, Result]:
    """Every search with an engine to itself."""
    results: dict[int, Result] = {}
    for first in sorted({request.id // 10 for request in SEARCHES}):
        results |= decode(engine_core(model), of_search(first)).results
    return results


def of_search(number: int) -> list[SequenceRequest]:
    return [request for request in SEARCHES if request.id // 10 == number]


def score(run: Run, id_: int) -> float | None:
    return next(output.beam_score for output in run.outputs if output.id == id_ and output.finish_reason)


def check_against_oracle(model: GPT, params: SamplingParams, rules: BeamSearch) -> None:
    found = beam_oracle(model, PROMPT, params, rules, frozenset({EOS, *params.stop_token_ids}))
    run = decode(engine_core(model), ranks(SequenceRequest(0, PROMPT, params, beams=rules)))
    assert [run.results[rank].tokens for rank in range(len(found))] == [list(one.tokens) for one in found]
    assert [score(run, rank) for rank in range(len(found))] == pytest.approx([one.score for one in found], abs=1e-4)
    for rank in range(len(found)):
        last = run.results[rank].tokens[-1]
        is_stop = last == EOS or last in params.stop_token_ids
        assert run.results[rank].finish_reason == ("stop" if is_stop else "length")
        assert run.results[rank].stop_token == (last if is_stop else None)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_hypotheses_and_scores_are_those_of_a_dumb_search(model: GPT, rules: BeamSearch) -> None:
    check_against_oracle(model, PARAMS, rules)


@pytest.mark.parametrize("rules", [RULES[3], RULES[6]], ids=str)
def test_constraints_and_penalties_are_part_of_the_score(model: GPT, rules: BeamSearch) -> None:
    params = replace(
        PARAMS,
        repetition_penalty=1.3,
        frequency_penalty=0.4,
        presence_penalty=0.2,
        banned_tokens=(1, 2, 50),
        logit_bias=((41, 3.0), (60, -100.0)),
    )
    check_against_oracle(model, params, rules)


def test_ending_tokens_are_withheld_until_min_tokens(model: GPT) -> None:
    params = replace(PARAMS, min_tokens=6)
    run = decode(engine_core(model), ranks(SequenceRequest(0, PROMPT, params, beams=BeamSearch(4))))
    for result in run.results.values():
        assert not set(result.tokens[:6]) & {EOS, *PARAMS.stop_token_ids}
        assert len(result.tokens) >= 7


def test_one_beam_is_greedy_decoding(model: GPT) -> None:
    greedy = SequenceRequest(0, PROMPT, replace(PARAMS, temperature=0.0, logprobs=2, prompt_logprobs=1))
    searched = replace(greedy, beams=BeamSearch(1, early_stopping=True))
    assert decode(engine_core(model), [searched]).results == decode(engine_core(model), [greedy]).results


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length_penalty": 0.0},
        {"length_penalty": 2.0, "early_stopping": "never"},
        {"early_stopping": True},
        {"repetition_penalty": 1.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("width", [2, 4, 5])
def test_texts_and_scores_are_those_of_transformers(
    gpt2: tuple[GPT2LMHeadModel, GPT], width: int, options: dict[str, float | bool | str]
) -> None:
    theirs, ours = gpt2
    penalty = float(options.get("repetition_penalty", 1.0))
    rules = {name: value for name, value in options.items() if name != "repetition_penalty"}
    params = SamplingParams(max_tokens=12, stop_token_ids=ENDINGS, ignore_eos=True, repetition_penalty=penalty)
    lengths = set()
    for prompt in ([5, 17, 42, 8], [2], [30, 31, 30, 31, 30, 31]):
        answer = theirs.generate(
            torch.tensor([prompt]),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=list(ENDINGS),
            pad_token_id=PADDING,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        beams = BeamSearch(width, **rules)  # type: ignore[arg-type]
        run = decode(engine_core(ours), ranks(SequenceRequest(0, tuple(prompt), params, beams=beams)))
        expected = [text[len(prompt) :].tolist() for text in answer.sequences]
        tokens = [run.results[rank].tokens for rank in range(width)]
        assert [text + [PADDING] * (len(expected[0]) - len(text)) for text in tokens] == expected
        scores = [score(run, rank) for rank in range(width)]
        assert scores == pytest.approx(answer.sequences_scores.tolist(), abs=1e-4)
        lengths |= set(map(len, tokens))
    assert lengths != {12} or options.get("length_penalty") == 2.0


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2LMHeadModel, GPT]:
    """The same random weights in both; some variety in what they say."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=3, eos_token_id=3)
    theirs = GPT2LMHeadModel(config).eval()
    for parameter in theirs.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6.0)
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    ours = load_checkpoint(folder, torch.float32, torch.device("cpu"))
    make_exact(ours, 64, allow_inexact=False)
    return theirs, ours


def test_the_searches_are_worth_comparing(expected: dict[int, Result]) -> None:
    assert len({tuple(result.tokens) for result in expected.values()}) > 12
    assert {result.finish_reason for result in expected.values()} == {"stop", "length"}


def test_company_changes_nothing(model: GPT, expected: dict[int, Result]) -> None:
    others = [replace(request, id=request.id + 1000) for request in request_mix(8, seed=2)]
    run = decode(engine_core(model, max_step_tokens=100), [*others[:4], *SEARCHES, *others[4:]])
    assert {id_: result for id_, result in run.results.items() if id_ < 1000} == expected
    for request in others:
        assert decode(engine_core(model), [request]).results[request.id] == run.results[request.id]


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_the_cut_into_chunks_changes_nothing(model: GPT, expected: dict[int, Result], chunk: int) -> None:
    for number in range(1 if chunk == 1 else 3):
        core = engine_core(model, max_step_tokens=chunk, max_running=min(chunk, 8))
        results = decode(core, of_search(number)).results
        assert results == {id_: expected[id_] for id_ in results}


def test_again_with_everything_cached_changes_nothing(model: GPT, expected: dict[int, Result]) -> None:
    core = engine_core(model)
    assert decode(core, SEARCHES).results == expected
    assert decode(core, SEARCHES).results == expected


def test_one_running_sequence_at_a_time_is_enough(model: GPT, expected: dict[int, Result]) -> None:
    assert decode(engine_core(model, max_running=1), SEARCHES).results == expected


@pytest.mark.parametrize("num_blocks", [6, 8, 12])
def test_a_cache_for_hardly_more_than_one_beam_changes_nothing(
    model: GPT, expected: dict[int, Result], num_blocks: int
) -> None:
    core = engine_core(model, num_blocks, max_step_tokens=64)
    run = decode(core, [*SEARCHES, *(replace(request, id=request.id + 1000) for request in request_mix(3, 5, 40))])
    assert {id_: result for id_, result in run.results.items() if id_ < 1000} == expected
    assert sum(stats.num_preemptions for stats in run.stats) > 5
    assert core.scheduler.pool.num_available == num_blocks


@pytest.mark.parametrize("number", [0, 2, 3])
def test_a_preemption_at_any_step_changes_nothing(model: GPT, expected: dict[int, Result], number: int) -> None:
    requests = of_search(number)

    def preempting_at(when: int) -> Callable[[EngineCore, int], None]:
        def disturb(core: EngineCore, step: int) -> None:
            if step == when and core.scheduler.running:
                preempt(core, when % len(core.scheduler.running))

        return disturb

    undisturbed = decode(engine_core(model, max_step_tokens=24), requests)
    for when in range(1, len(undisturbed.stats)):
        results = decode(engine_core(model, max_step_tokens=24), requests, preempting_at(when)).results
        assert results == {id_: expected[id_] for id_ in results}, when


def test_preempting_somebody_before_every_other_step_changes_nothing(model: GPT, expected: dict[int, Result]) -> None:
    def disturb(core: EngineCore, step: int) -> None:
        if step % 2 and core.scheduler.running:
            preempt(core, step % len(core.scheduler.running))

    assert decode(engine_core(model, max_step_tokens=64), SEARCHES, disturb).results == expected


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 40))])
def test_searches_guided_and_plain_sequences_at_once_change_nothing(model: GPT, seed: int) -> None:
    """Random arrivals, limits, preemptions, aborts and a small cache."""
    generator = random.Random(seed)
    plain = request_mix(6, seed, max_prompt=50, max_tokens=16, first_id=500)
    guided = [
        replace(request, id=request.id + 100, guidance=Guidance(other.prompt, 2.0))
        for request, other in zip(plain[:3], plain[3:], strict=True)
    ]
    groups = [[request] for request in (*plain, *guided)]
    searched = searches(4, seed=1000 + seed)
    groups += [[request for request in searched if request.id // 10 == number] for number in range(4)]
    expected: dict[int, Result] = {}
    for group in groups:
        expected |= decode(engine_core(model), group).results
    passers_by = [replace(request, id=request.id + 5000) for request in (*guided, *searched)]
    groups += [[request] for request in passers_by]
    limit = generator.choice([5, 20, 70, 300])
    core = engine_core(model, generator.choice([7, 12, 30, 200]), min(limit, generator.randint(1, 24)), limit)
    arriving = iter(generator.sample(groups, len(groups)))

    def disturb(core: EngineCore, step: int) -> None:
        for request in next(arriving, ()) if step % 2 == 0 else ():
            core.add(request)
        if generator.random() < 0.1 and core.scheduler.running:
            preempt(core, generator.randrange(len(core.scheduler.running)))
        core.abort([generator.choice(passers_by).id])

    results = drain(core, disturb, more_until=2 * len(groups)).results
    assert {id_: results[id_] for id_ in expected} == expected
    assert core.scheduler.pool.num_available == core.scheduler.pool.num_blocks


def test_a_hypothesis_asked_for_alone_is_that_of_the_whole_search(model: GPT, expected: dict[int, Result]) -> None:
    for request in of_search(1):
        assert decode(engine_core(model), [request]).results[request.id] == expected[request.id]


def test_the_ranks_of_a_search_share_its_work(model: GPT) -> None:
    request = SequenceRequest(0, PROMPT, replace(PARAMS, max_tokens=5), beams=BeamSearch(4))
    together, alone = decode(engine_core(model), ranks(request)), decode(engine_core(model), [request])
    assert [computed(run) for run in (together,)] == [computed(alone)]


def computed(run: Run) -> int:
    return sum(stats.num_prompt_tokens for stats in run.stats)


def test_settled_tokens_are_told_before_the_end_and_never_taken_back(model: GPT, expected: dict[int, Result]) -> None:
    streamed = 0
    for request in SEARCHES:
        assert request.beams is not None
        outputs = decode(engine_core(model), [request]).outputs
        early = [token for output in outputs if output.finish_reason is None for token in output.tokens]
        assert expected[request.id].tokens[: len(early)] == early
        assert request.beams.rank == 0 or not early
        streamed += len(early)
    assert streamed > 5


@pytest.mark.parametrize("when", [0, 1, 2, 5])
def test_an_abort_of_all_frees_everything(model: GPT, when: int) -> None:
    core = engine_core(model, max_step_tokens=20)
    requests = ranks(SequenceRequest(0, PROMPT, replace(PARAMS, stop_token_ids=(), max_tokens=20), beams=BeamSearch(4)))
    results = decode(core, requests, aborting(when, range(4))).results
    assert {result.finish_reason for result in results.values()} == {"abort"}
    pool = core.scheduler.pool
    assert (pool.num_available, core.scheduler.has_work) == (pool.num_blocks, False)


def test_who_aborts_leaves_the_others_their_search(model: GPT, expected: dict[int, Result]) -> None:
    first, *others = [request.id for request in of_search(1)]
    results = decode(engine_core(model), of_search(1), aborting(2, [first])).results
    assert {id_: results[id_] for id_ in others} == {id_: expected[id_] for id_ in others}


def aborting(when: int, ids: Sequence[int]) -> Callable[[EngineCore, int], None]:
    def disturb(core: EngineCore, step: int) -> None:
        if step == when:
            core.abort(ids)

    return disturb


@pytest.mark.parametrize("chunk", [8, 512])
@pytest.mark.parametrize("prompt", [PROMPT, (*PROMPT, VOCAB_SIZE - 1, 3)])
def test_numbers_that_are_not_finite_end_the_whole_search(chunk: int, prompt: tuple[int, ...]) -> None:
    """Whether they come with the prompt or with a token that a beam has chosen."""
    model = tiny_model(FAMILIES["gqa"])
    poison = VOCAB_SIZE - 1
    model.embedding.weight.data[poison] = float("nan")
    biased = replace(PARAMS, logit_bias=((poison, 100.0),))
    mate = SequenceRequest(10, PROMPT, replace(PARAMS, temperature=0.0, banned_tokens=(poison,)))
    core = engine_core(model, max_step_tokens=chunk, max_running=min(chunk, 64))
    results = decode(core, [*ranks(SequenceRequest(0, prompt, biased, beams=BeamSearch(3))), mate]).results
    assert {results[rank].finish_reason for rank in range(3)} == {"error"}
    assert results[10] == decode(engine_core(model), [mate]).results[10]
    assert holds_only_finite(core)
    assert not core.scheduler.has_work


def test_where_few_texts_are_possible_the_last_hypotheses_are_empty(model: GPT) -> None:
    params = SamplingParams(max_tokens=3, allowed_tokens=(7,), ignore_eos=True)
    run = decode(engine_core(model), ranks(SequenceRequest(0, PROMPT, params, beams=BeamSearch(3))))
    assert [run.results[rank].tokens for rank in range(3)] == [[7, 7, 7], [], []]
    assert [run.results[rank].finish_reason for rank in range(3)] == ["length", "stop", "stop"]
    assert score(run, 1) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "beam_width is 0; it must be between 1 and 16"),
        ({"width": 17}, "beam_width is 17; it must be between 1 and 16"),
        ({"width": 2, "rank": 2}, "n is 2; it must be between 0 and 1"),
        ({"width": 2, "length_penalty": float("nan")}, "length_penalty is nan; it must be between -10"),
        ({"width": 4, "num_groups": 3, "diversity_penalty": 1.0}, "num_beam_groups is 3; it must divide"),
        ({"width": 4, "num_groups": 2}, "diversity_penalty is 0.0 with 2 groups"),
        ({"width": 4, "diversity_penalty": 1.0}, "diversity_penalty is 1.0 with 1 groups"),
        ({"width": 4, "num_groups": 2, "diversity_penalty": -1.0}, "diversity_penalty is -1.0; it must be between"),
    ],
)
def test_rules_out_of_range_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        BeamSearch(**fields)  # type: ignore[arg-type]


def test_what_does_not_combine_is_refused(model: GPT) -> None:
    core = engine_core(model)
    request = SequenceRequest(0, PROMPT, PARAMS, beams=BeamSearch(2))
    with pytest.raises(ParameterError, match="guidance_scale is set together with beam search"):
        core.add(replace(request, guidance=Guidance((1,), 2.0)))
    with pytest.raises(ParameterError, match="max_tokens is 0; beam search needs at least 1"):
        core.add(replace(request, params=replace(PARAMS, max_tokens=0)))
    assert not core.has_work()
