"""What the engine promises besides exactness: endings, limits, refusals, the prefix cache and its numbers."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from backends import on_every_backend
from engine_driver import EOS, Result, Run, decode, drain, engine_core, preempt
from request_mix import request_mix
from sampler_oracle import greedy, log_softmax
from tiny_models import CONTEXT_LENGTH, FAMILIES, VOCAB_SIZE, tiny_model

from model.gpt import GPT
from model.reference import sequence_logits
from server.engine.core import EngineCore
from server.engine.params import ParameterError, SamplingParams
from server.engine.types import SequenceRequest

pytestmark = on_every_backend
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def gqa() -> GPT:
    return tiny_model(FAMILIES["gqa"])


def request(
    id_: int = 1, length: int = 20, params: SamplingParams = GREEDY, prompt: Sequence[int] | None = None
) -> SequenceRequest:
    return SequenceRequest(id_, tuple(prompt or [(11 * i + 3) % VOCAB_SIZE for i in range(length)]), params)


def result(model: GPT, params: SamplingParams, eos: tuple[int, ...] = (EOS,)) -> Result:
    return decode(engine_core(model, eos=eos), [request(params=params)]).results[1]


def test_an_end_of_sequence_token_ends_it_and_is_its_last(gqa: GPT) -> None:
    tokens = result(gqa, GREEDY).tokens
    third = tokens[2]
    assert third not in tokens[:2]
    ended = result(gqa, replace(GREEDY, ignore_eos=False), eos=(third, 96))
    assert (ended.tokens, ended.finish_reason, ended.stop_token) == (tokens[:3], "stop", third)
    assert result(gqa, GREEDY, eos=(third,)).tokens == tokens


def test_a_stop_token_ends_it_even_where_end_of_sequence_is_ignored(gqa: GPT) -> None:
    tokens = result(gqa, GREEDY).tokens
    ended = result(gqa, replace(GREEDY, stop_token_ids=(tokens[3],)))
    end = tokens.index(tokens[3]) + 1
    assert (ended.tokens, ended.finish_reason, ended.stop_token) == (tokens[:end], "stop", tokens[3])


def test_a_stop_token_that_is_the_last_allowed_token_is_a_stop(gqa: GPT) -> None:
    tokens = result(gqa, GREEDY).tokens
    ended = result(gqa, replace(GREEDY, max_tokens=3, stop_token_ids=(tokens[2],)))
    assert (ended.finish_reason, ended.stop_token) == ("stop", tokens[2])


def test_ending_tokens_are_withheld_until_min_tokens(gqa: GPT) -> None:
    """Until then the choice is what it would be were they banned; afterwards the first of them ends the sequence."""
    endings = tuple(range(0, VOCAB_SIZE, 2))
    held = result(gqa, replace(GREEDY, min_tokens=5, stop_token_ids=endings, max_tokens=60))
    banned = result(gqa, replace(GREEDY, banned_tokens=endings))
    assert held.tokens[:5] == banned.tokens[:5]
    assert held.finish_reason == "stop"
    assert all(token % 2 for token in held.tokens[:-1])
    assert held.tokens[-1] % 2 == 0
    assert len(held.tokens) > 5


def test_a_prompt_may_fill_the_context_and_be_described_without_a_token(gqa: GPT) -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=2)
    core = engine_core(gqa, num_blocks=CONTEXT_LENGTH // 16, max_step_tokens=50)
    described = decode(core, [request(length=CONTEXT_LENGTH, params=params)]).results[1]
    assert (described.tokens, described.finish_reason) == ([], "length")
    assert len(described.prompt_logprobs) == CONTEXT_LENGTH - 1


@pytest.mark.parametrize("length", [1, 2, 16, 17])
def test_nothing_asked_for_is_a_length_ending(gqa: GPT, length: int) -> None:
    ended = decode(engine_core(gqa), [request(length=length, params=SamplingParams(max_tokens=0))]).results[1]
    assert ended == Result(finish_reason="length")


def test_output_may_fill_the_context_to_its_last_position(gqa: GPT) -> None:
    params = replace(GREEDY, max_tokens=16)
    full = decode(engine_core(gqa), [request(length=CONTEXT_LENGTH - 16, params=params)]).results[1]
    assert (len(full.tokens), full.finish_reason) == (16, "length")


def test_logprobs_are_those_of_the_reference_at_their_positions(gqa: GPT) -> None:
    params = replace(GREEDY, logprobs=3, prompt_logprobs=1, logit_bias=((4, 30.0),), max_tokens=4)
    given = request(params=params)
    got = decode(engine_core(gqa), [given]).results[1]
    assert got.tokens == [4] * 4  # the bias decides, and is not reported
    rows = sequence_logits(gqa, [*given.prompt, *got.tokens]).tolist()
    described = [*got.prompt_logprobs, *got.logprobs]
    sequence = [*given.prompt, *got.tokens]
    assert [said.token for said in described] == sequence[1:]
    for position, said in enumerate(described, start=1):
        logprobs = log_softmax(rows[position - 1])
        assert said.logprob == pytest.approx(logprobs[sequence[position]], abs=1e-4)
        assert said.top_tokens[0] == greedy(rows[position - 1])
    assert [len(said.top_tokens) for said in described] == [1] * 19 + [3] * 4


def test_prompt_logprobs_come_once_and_in_order_whatever_the_chunks_and_preemptions(gqa: GPT) -> None:
    given = request(length=70, params=replace(GREEDY, prompt_logprobs=4))
    expected = decode(engine_core(gqa), [given]).results[1]
    assert [said.token for said in expected.prompt_logprobs] == list(given.prompt[1:])
    for when in range(12):
        core = engine_core(gqa, max_step_tokens=11)

        def disturb(core: EngineCore, step: int, when: int = when) -> None:
            if step == when:
                preempt(core)

        assert decode(core, [given], disturb).results[1] == expected


def test_prompt_logprobs_are_complete_on_a_warm_cache(gqa: GPT) -> None:
    core = engine_core(gqa)
    plain = request(length=70)
    decode(core, [plain])
    given = request(2, length=70, params=replace(GREEDY, prompt_logprobs=0))
    assert len(decode(core, [given]).results[2].prompt_logprobs) == 69


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_an_abort_in_any_state_ends_with_what_was_said_and_frees_the_blocks(gqa: GPT, steps: int) -> None:
    """Waiting, in the prompt, about to choose, decoding; beside one that goes on undisturbed."""
    mate, leaver = request(1, length=9), request(2, length=30)
    core = engine_core(gqa, max_step_tokens=25)
    run = Run()
    for given in (mate, leaver):
        core.add(given)
    for _ in range(steps):
        run.add(core.step())
    core.abort([2, 2, 99])
    core.abort([2])
    assert core.has_work()
    referenced = core.scheduler.pool.num_blocks - core.scheduler.pool.num_available
    assert referenced == (1 if steps else 0)
    rest = drain(core)
    run.outputs += rest.outputs
    for output in rest.outputs:
        run.results.setdefault(output.id, Result()).add(output)
    assert run.results[2].finish_reason == "abort"
    assert run.results[1] == decode(engine_core(gqa), [mate]).results[1]


def test_an_abort_after_a_preemption_and_after_the_end_is_harmless(gqa: GPT) -> None:
    core = engine_core(gqa)
    core.add(request())
    core.step()
    preempt(core)
    core.abort([1])
    output = core.step()
    assert [(ended.id, ended.finish_reason) for ended in output.outputs] == [(1, "abort")]
    assert output.stats.num_waiting == output.stats.num_running == 0
    core.abort([1])
    assert not core.has_work()


REFUSALS = [
    ((), SamplingParams(), "prompt", ["empty", "1"]),
    ((5, VOCAB_SIZE), SamplingParams(), "prompt", ["97", "96"]),
    ((5, -1), SamplingParams(), "prompt", ["-1", "96"]),
    ((5,) * 250, SamplingParams(max_tokens=7), "max_tokens", ["is 7", "250", "256", "leaves 6"]),
    ((5,) * 300, SamplingParams(max_tokens=1), "max_tokens", ["is 1", "300", "leaves 0"]),
    ((5,) * 257, SamplingParams(max_tokens=0), "max_tokens", ["257", "256"]),
    ((5,), SamplingParams(stop_token_ids=(97,)), "stop_token_ids", ["97", "96"]),
    ((5,), SamplingParams(logit_bias=((-3, 1.0),)), "logit_bias", ["-3", "96"]),
    ((5,), SamplingParams(allowed_tokens=()), "allowed_tokens", ["no token"]),
    ((5,), SamplingParams(allowed_tokens=(4, 6), banned_tokens=(6, 4)), "allowed_tokens", ["no token"]),
    ((5,), SamplingParams(allowed_tokens=(0,), min_tokens=1), "allowed_tokens", ["no token"]),
    ((5,), SamplingParams(banned_tokens=tuple(range(97))), "banned_tokens", ["no token"]),
]


@pytest.mark.parametrize(("prompt", "params", "parameter", "said"), REFUSALS)
def test_a_request_that_cannot_be_served_is_refused_by_name_value_and_limit(
    gqa: GPT, prompt: tuple[int, ...], params: SamplingParams, parameter: str, said: list[str]
) -> None:
    core = engine_core(gqa)
    with pytest.raises(ParameterError) as refusal:
        core.add(SequenceRequest(1, prompt, params))
    assert refusal.value.parameter == parameter
    assert all(part in str(refusal.value) for part in [parameter, *said])
    assert not core.has_work()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: SamplingParams(temperature=10.5), "temperature is 10.5; it must be between 0.0 and 10.0"),
        (lambda: SamplingParams(temperature=float("nan")), "temperature is nan"),
        (lambda: SamplingParams(top_p=0.0), "top_p is 0.0; it must be above 0 and at most 1.0"),
        (lambda: SamplingParams(min_tokens=17), "min_tokens is 17; it must be between 0 and 16"),
        (lambda: SamplingParams(logprobs=21), "logprobs is 21; it must be between 0 and 20"),
        (lambda: SamplingParams(seed=2**64), "seed is 18446744073709551616"),
        (lambda: SamplingParams(seed=-1), "seed is -1"),
        (
            lambda: SamplingParams(logit_bias=((7, 101.0),)),
            "logit_bias[7] is 101.0; it must be between -100.0 and 100.0",
        ),
        (lambda: SamplingParams(stop_token_ids=(1,) * 1025), "stop_token_ids lists 1025 tokens; the limit is 1024"),
        (lambda: SamplingParams(repetition_penalty=0.0), "repetition_penalty is 0.0"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name_value_and_limit(
    build: Callable[[], SamplingParams], said: str
) -> None:
    with pytest.raises(ParameterError) as refusal:
        build()
    assert str(refusal.value).startswith(said)


def test_the_prefix_cache_says_what_it_was_asked_and_what_it_found(gqa: GPT) -> None:
    core = engine_core(gqa)
    first = decode(core, [request(1, length=70)])
    assert sum(stats.num_prefix_query_tokens for stats in first.stats) == 70
    assert sum(stats.num_prefix_hit_tokens for stats in first.stats) == 0
    second = decode(core, [request(2, length=70)])
    assert sum(stats.num_prefix_hit_tokens for stats in second.stats) == 64 == second.cached_tokens(2)
    assert sum(stats.num_prompt_tokens for stats in second.stats) == 6


def test_equal_prefixes_admitted_together_are_computed_once(gqa: GPT) -> None:
    twins = [request(id_, length=70, params=replace(GREEDY, seed=id_, temperature=1.0)) for id_ in range(4)]
    run = decode(engine_core(gqa), twins)
    assert sum(stats.num_prompt_tokens for stats in run.stats) == 70 + 3 * 6
    assert [run.cached_tokens(twin.id) for twin in twins] == [0, 64, 64, 64]


def test_sequences_are_admitted_in_the_order_they_came(gqa: GPT) -> None:
    """Even where a later one would fit and the first in line does not."""
    core = engine_core(gqa, num_blocks=16)
    lengths = [150, 120, 10, 10]
    for id_, length in enumerate(lengths):
        core.add(request(id_, prompt=[(id_ + 5 * i) % VOCAB_SIZE for i in range(length)]))
    core.step()
    assert [sequence.request.id for sequence in core.scheduler.running] == [0]
    starts = {output.id: output.scheduled_at for output in drain(core).outputs}
    assert sorted(starts, key=starts.__getitem__) == [0, 1, 2, 3]
    assert starts[0] < starts[1] <= starts[2] <= starts[3]


@pytest.mark.parametrize(("max_running", "max_step_tokens"), [(3, 10), (8, 8), (2, 40)])
def test_step_statistics_add_up_and_stay_within_the_limits(gqa: GPT, max_running: int, max_step_tokens: int) -> None:
    requests = request_mix(12, seed=6)
    run = decode(engine_core(gqa, 20, max_running, max_step_tokens), requests)
    generated = sum(len(result.tokens) for result in run.results.values())
    assert sum(stats.num_generated_tokens for stats in run.stats) == generated
    computed = sum(stats.num_prompt_tokens for stats in run.stats)
    hits = sum(stats.num_prefix_hit_tokens for stats in run.stats)
    assert computed + hits >= sum(len(given.prompt) for given in requests)
    for stats in run.stats:
        assert stats.num_prompt_tokens <= max_step_tokens
        assert stats.num_generated_tokens <= max_running
        assert stats.num_running <= max_running
        assert stats.num_free_blocks + stats.num_cached_blocks <= stats.num_blocks == 20
        parts = stats.schedule_seconds + stats.draft_seconds + stats.forward_seconds + stats.sample_seconds
        building = 2  # ticks before and after the model, of a clock that ticks whenever it is read
        assert stats.duration_seconds == parts + building
    last = run.stats[-1]
    assert last.num_free_blocks + last.num_cached_blocks == last.num_blocks
    assert last.num_running == last.num_waiting == 0


def test_without_preemption_or_hits_every_token_is_computed_exactly_once(gqa: GPT) -> None:
    given = request(length=37)
    run = decode(engine_core(gqa, max_step_tokens=5), [given])
    assert sum(stats.num_prompt_tokens for stats in run.stats) == 37
    assert len(run.stats) == -(-37 // 5) + len(run.results[1].tokens) - 1
