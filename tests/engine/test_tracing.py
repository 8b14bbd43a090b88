"""Traces say what was done to each distribution and why the token won, and looking changes nothing."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from backends import on_every_backend
from drafting_cases import Oracle, speculating
from engine_driver import Result, Run, decode, drain, engine_core, preempt
from numpy.typing import NDArray
from request_mix import request_mix
from test_noise import noise_of
from tiny_models import CORNERS, FAMILIES, VOCAB_SIZE, tiny_model
from torch import Tensor

from model.attention import attention_weights, causal_attend, explicit_attention
from model.config import ModelConfig
from model.gpt import GPT
from model.reference import sequence_logits
from server.engine.core import EngineCore
from server.engine.grammar_queue import GrammarQueue
from server.engine.grammar_spec import Grammar, GrammarError
from server.engine.params import ParameterError, SamplingParams
from server.engine.sampling.order import DEFAULT_ORDER
from server.engine.scheduler import Chunk
from server.engine.tracing import stage_trace
from server.engine.tracing_inside import View, Watch
from server.engine.tracing_types import TokenTrace, TraceOptions
from server.engine.types import BeamSearch, Guidance, SequenceOutput, SequenceRequest, StepOutput
from server.protocol import StepReport, decode_from_engine, encode

pytestmark = on_every_backend
EVERYTHING = TraceOptions(5, experts=True, attention=True)
PROMPT = tuple(range(5, 45))
FILTERED = SamplingParams(
    max_tokens=12,
    logit_bias=((1, 0.5),),
    repetition_penalty=1.1,
    frequency_penalty=0.1,
    temperature=0.9,
    top_k=12,
    top_p=0.95,
    min_p=1e-3,
    seed=3,
    logprobs=5,
    ignore_eos=True,
)
PLAIN = SamplingParams(max_tokens=20, seed=7, ignore_eos=True)


@pytest.fixture(scope="module")
def gqa() -> GPT:
    return tiny_model(FAMILIES["gqa"])


@pytest.fixture(scope="module")
def moe() -> GPT:
    return tiny_model(FAMILIES["moe"])


def traces_of(run: Run, id_: int = 0) -> list[TokenTrace]:
    return [trace for output in run.outputs if output.id == id_ for trace in output.traces]


def traced(model: GPT, request: SequenceRequest) -> tuple[Result, list[TokenTrace]]:
    """A sequence's result and traces, by itself."""
    run = decode(engine_core(model), [request])
    return run.results[request.id], traces_of(run, request.id)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max())
    result: NDArray[np.float64] = weights / weights.sum()
    return result


def test_a_stage_is_told_as_numpy_counts_it() -> None:
    before = np.log(np.array([0.4, 0.1, 0.25, 0.05, 0.2]))
    hidden = before.copy()
    hidden[4] = -np.inf  # no candidate any more before the stage: not counted, not removed
    after = hidden.copy()
    after[[1, 3]] = -np.inf
    told = stage_trace("top_k", torch.tensor(hidden).float(), torch.tensor(after).float(), 10)
    was, is_now = softmax(hidden), softmax(after)
    assert (told.name, told.num_before, told.num_after) == ("top_k", 4, 2)
    assert told.removed == pytest.approx(was[[1, 3]].sum(), abs=1e-7)
    assert told.top_tokens == (0, 2)
    assert told.top_probabilities == pytest.approx(is_now[[0, 2]], abs=1e-7)
    assert sum(told.top_probabilities) == pytest.approx(1.0)


def test_a_stage_that_only_shapes_removes_nothing_and_ties_go_to_the_lower_id() -> None:
    before = torch.tensor([1.0, 3.0, 1.0, 3.0])
    told = stage_trace("temperature", before, before / 2, 3)
    assert (told.num_before, told.num_after, told.removed) == (4, 4, 0.0)
    assert told.top_tokens == (1, 3, 0)
    assert stage_trace("temperature", before, before / 2, 0).top_tokens == ()


def test_the_models_own_distribution_is_the_reference_decoders(gqa: GPT) -> None:
    result, traces = traced(gqa, SequenceRequest(0, PROMPT, FILTERED, trace=TraceOptions(20)))
    assert len(traces) == len(result.tokens) == FILTERED.max_tokens
    logits = sequence_logits(gqa, [*PROMPT, *result.tokens]).double().numpy()
    for index, (token, trace) in enumerate(zip(result.tokens, traces, strict=True)):
        own = softmax(logits[len(PROMPT) - 1 + index])
        assert trace.entropy == pytest.approx(-(own * np.log(own)).sum(), abs=1e-3)
        assert trace.logprob == pytest.approx(np.log(own[token]), abs=1e-3)
        assert np.exp(trace.top_logprobs) == pytest.approx(np.sort(own)[::-1][:20], abs=1e-4)
        assert trace.rank == (own > own[token]).sum() + 1


def test_the_raw_part_is_what_logprobs_say(gqa: GPT) -> None:
    result, traces = traced(gqa, SequenceRequest(0, PROMPT, FILTERED, trace=TraceOptions(5)))
    for entry, trace in zip(result.logprobs, traces, strict=True):
        assert (entry.entropy, entry.logprob, entry.rank) == (trace.entropy, trace.logprob, trace.rank)
        assert (entry.top_tokens, entry.top_logprobs) == (trace.top_tokens, trace.top_logprobs)


@pytest.mark.parametrize("order", [DEFAULT_ORDER, DEFAULT_ORDER[::-1]])
def test_stages_are_told_in_the_order_of_the_request_and_hand_candidates_on(gqa: GPT, order: tuple[str, ...]) -> None:
    params = replace(FILTERED, samplers=order)
    result, traces = traced(gqa, SequenceRequest(0, PROMPT, params, trace=TraceOptions(20)))
    asked = {"repetition_penalty", "frequency_penalty", "temperature", "top_k", "top_p", "min_p"}
    names = ["constraints", *(name for name in order if name in asked)]
    for token, trace in zip(result.tokens, traces, strict=True):
        assert [stage.name for stage in trace.stages] == names
        assert trace.stages[0].num_before == VOCAB_SIZE
        for stage, following in zip(trace.stages, trace.stages[1:], strict=False):
            assert stage.num_after == following.num_before
        assert all((stage.removed > 0) == (stage.num_after < stage.num_before) for stage in trace.stages)
        last = trace.stages[-1]
        assert last.num_after <= 12
        assert sum(last.top_probabilities) == pytest.approx(1.0)
        final = dict(zip(last.top_tokens, last.top_probabilities, strict=True))
        assert trace.final_probability == final[token]
        assert trace.final_rank == 1 + sum(other > final[token] for other in final.values())


def test_the_noise_that_decided_is_the_generators_and_the_winner_has_the_higher_score(gqa: GPT) -> None:
    result, traces = traced(gqa, SequenceRequest(0, PROMPT, PLAIN, trace=TraceOptions(1)))
    overtaken = 0
    for index, (token, trace) in enumerate(zip(result.tokens, traces, strict=True)):
        winner, second = trace.winner, trace.runner_up
        assert winner is not None
        assert winner.token == token
        assert second is not None
        assert winner.score > second.score
        noise = noise_of(PLAIN.seed, len(PROMPT) + index, VOCAB_SIZE)
        for one in (winner, second):
            assert one.noise == pytest.approx(float(noise[one.token]), abs=1e-9)
            assert one.score == one.logit + one.noise
        overtaken += winner.logit < second.logit
    assert overtaken  # noise did decide somewhere


def test_nothing_is_drawn_for_a_greedy_request(gqa: GPT) -> None:
    result, traces = traced(gqa, SequenceRequest(0, PROMPT, replace(PLAIN, temperature=0.0), trace=TraceOptions(2)))
    for token, trace in zip(result.tokens, traces, strict=True):
        assert (trace.winner, trace.runner_up) == (None, None)
        assert [(stage.name, stage.num_after, stage.top_tokens) for stage in trace.stages] == [
            ("temperature", 1, (token,))
        ]
        assert (trace.rank, trace.final_rank, trace.final_probability) == (1, 1, 1.0)


def test_a_lone_candidate_has_no_runner_up(gqa: GPT) -> None:
    request = SequenceRequest(0, PROMPT, replace(PLAIN, top_k=1), trace=TraceOptions(2))
    _, traces = traced(gqa, request)
    assert all(trace.winner is not None and trace.runner_up is None for trace in traces)


@pytest.mark.parametrize("family", ["gqa", "moe"])
def test_tracing_changes_no_token_and_no_neighbour_and_is_the_same_alone_and_in_a_batch(family: str) -> None:
    model = tiny_model(FAMILIES[family])
    requests = request_mix(12, max_tokens=10)
    some = [replace(one, trace=EVERYTHING) if one.id % 2 else one for one in requests]

    def disturb(core: EngineCore, step: int) -> None:
        if step in (3, 5):
            preempt(core, index=step % 2)

    together = decode(engine_core(model, max_step_tokens=64), some, disturb)
    assert together.results == decode(engine_core(model), requests).results
    for one in some:
        if one.trace is None:
            assert traces_of(together, one.id) == []
        else:
            assert traces_of(together, one.id) == traced(model, one)[1]


class Misled(Oracle):
    """Every third draft is wrong."""

    def _guess(self, chunk: Chunk) -> tuple[int, ...]:
        right, at = super()._guess(chunk), chunk.sequence.num_outputs
        return tuple((token + 1) % VOCAB_SIZE if (at + index) % 3 == 2 else token for index, token in enumerate(right))


@pytest.mark.parametrize("params", [PLAIN, replace(FILTERED, max_tokens=20)])
def test_every_draft_is_told_with_what_became_of_it(gqa: GPT, params: SamplingParams) -> None:
    requests = [SequenceRequest(id_, PROMPT[3 * id_ :], params, trace=EVERYTHING) for id_ in range(3)]
    expected = {one.id: traced(gqa, one) for one in requests}
    truth = {id_: result for id_, (result, _) in expected.items()}
    run = decode(engine_core(gqa, speculator=Misled(truth)), speculating(requests, "ngram", 4))
    assert run.results == truth
    for id_, (_, plain) in expected.items():
        assert [replace(trace, drafts=()) for trace in traces_of(run, id_)] == plain
    for output in (one for one in run.outputs if one.tokens):
        told = [draft for trace in output.traces for draft in trace.drafts]
        fates = [draft.fate for draft in told]
        assert len(told) == output.num_drafted
        assert fates.count("accepted") == output.num_accepted
        if output.num_accepted < output.num_drafted:
            behind = output.num_drafted - output.num_accepted - 1
            assert fates[output.num_accepted :] == ["rejected", *["behind a rejected one"] * behind]
        for token, trace in zip(output.tokens, output.traces, strict=True):
            for draft in trace.drafts[:1]:
                assert (draft.token == token) == (draft.fate == "accepted")
    fates = [draft.fate for trace in traces_of(run) for draft in trace.drafts]
    assert set(fates) == {"accepted", "rejected", "behind a rejected one"}


def test_drafts_behind_the_end_are_told_as_such(gqa: GPT) -> None:
    expected, _ = traced(gqa, SequenceRequest(0, PROMPT, PLAIN))
    stop = expected.tokens[1]
    ending = replace(PLAIN, stop_token_ids=(stop,))
    request = SequenceRequest(0, PROMPT, ending, trace=TraceOptions(0))
    run = decode(engine_core(gqa, speculator=Oracle({0: expected})), speculating([request], "ngram", 4))
    assert run.results[0].stop_token == stop
    assert [draft.fate for trace in traces_of(run) for draft in trace.drafts].count("behind the end") > 0


def test_the_experts_are_the_routers(moe: GPT) -> None:
    result, traces = traced(moe, SequenceRequest(0, PROMPT, PLAIN, trace=TraceOptions(0, experts=True)))
    tokens = [*PROMPT, *result.tokens]
    routed: dict[int, Tensor] = {}
    attend = causal_attend(moe.config, len(tokens), torch.device("cpu"), explicit_attention)
    moe(torch.tensor([tokens]), torch.arange(len(tokens)), attend, lambda layer, logits: routed.update({layer: logits}))
    for index, trace in enumerate(traces):
        assert len(trace.experts) == moe.config.num_layers
        for layer, told in enumerate(trace.experts):
            logits = routed[layer][0, len(PROMPT) - 1 + index]
            top = logits.topk(moe.config.num_experts_per_token)
            assert told.experts == tuple(top.indices.tolist())
            assert told.weights == pytest.approx(top.values.softmax(-1).tolist(), abs=1e-4)
            assert sum(told.weights) == pytest.approx(1.0)


def teaching_attention(model: GPT, tokens: Sequence[int]) -> list[Tensor]:
    """Weights [heads, queries, keys] of every layer, by the reference."""
    seen: list[Tensor] = []
    groups = model.config.num_groups

    def record(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(attention_weights(query, key.repeat_interleave(groups, dim=-3), visible, bias)[0])
        return explicit_attention(query, key, value, visible, bias)

    attend = causal_attend(model.config, len(tokens), torch.device("cpu"), record)
    model(torch.tensor([list(tokens)]), torch.arange(len(tokens)), attend)
    return seen


KINDS = {**FAMILIES, **CORNERS}


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_that_of_the_written_out_reference(kind: str) -> None:
    model = tiny_model(KINDS[kind])
    params = replace(PLAIN, max_tokens=4)
    request = SequenceRequest(0, PROMPT, params, trace=TraceOptions(0, attention=True))
    run = decode(engine_core(model, max_step_tokens=16), [request])
    reference = teaching_attention(model, [*PROMPT, *run.results[0].tokens])
    for index, trace in enumerate(traces_of(run)):
        position = len(PROMPT) - 1 + index
        told = np.array([[np.frombuffer(head, np.float32) for head in layer] for layer in trace.attention])
        assert told.shape == (model.config.num_layers, model.config.num_heads, position + 1)
        assert told.sum(-1) == pytest.approx(1.0, abs=1e-5)
        for layer, weights in enumerate(reference):
            assert told[layer] == pytest.approx(weights[:, position, : position + 1].numpy(), abs=2e-4)


def test_attention_beyond_what_a_step_may_carry_is_left_out_for_whole_tokens(gqa: GPT) -> None:
    config: ModelConfig = gqa.config
    options = TraceOptions(0, attention=True)
    views = [View(index, 9, [0], options) for index in range(3)]
    watch = Watch(views, max_weights=2 * config.num_layers * config.num_heads * 10)
    assert watch.attention(config) == views[:2]


def test_guidance_is_told_as_the_first_stage(gqa: GPT) -> None:
    guided = SequenceRequest(0, PROMPT, FILTERED, guidance=Guidance((9, 8, 7), 2.0))
    expected, _ = traced(gqa, guided)
    result, traces = traced(gqa, replace(guided, trace=TraceOptions(3, attention=True)))
    assert result == expected
    own = sequence_logits(gqa, PROMPT)[-1].log_softmax(-1)
    negative = sequence_logits(gqa, (9, 8, 7))[-1].log_softmax(-1)
    first = traces[0].stages[0]
    assert (first.name, first.num_before, first.num_after, first.removed) == ("guidance", VOCAB_SIZE, VOCAB_SIZE, 0.0)
    moved = (2.0 * own - negative).softmax(-1)
    assert first.top_probabilities == pytest.approx(moved.topk(3).values.tolist(), abs=1e-3)
    assert [len(trace.attention[0][0]) for trace in traces] == [4 * (len(PROMPT) + index) for index in range(12)]


def test_a_core_looks_at_nothing_once_its_traced_sequences_are_gone(gqa: GPT) -> None:
    core = engine_core(gqa)
    core.add(SequenceRequest(0, PROMPT, PLAIN, trace=EVERYTHING))
    core.add(SequenceRequest(1, PROMPT, PLAIN, trace=EVERYTHING))
    core.step()
    assert core._tracing
    core.abort([1])
    drain(core)
    assert not core._tracing
    assert core._tracing._views == {}


class GivesUp:
    """A grammar that is too much from the third token on."""

    num_accepted = 0

    def done(self) -> bool:
        return True

    def wait(self, seconds: float) -> None:
        pass

    def result(self) -> "GivesUp":
        return self

    def mask(self) -> NDArray[np.int32]:
        if self.num_accepted == 2:
            raise GrammarError("too much")
        return np.full(-(-VOCAB_SIZE // 32), -1, dtype=np.int32)

    def accept(self, token: int) -> None:
        self.num_accepted += 1

    def is_finished(self) -> bool:
        return False

    def copy(self) -> "GivesUp":
        return self


@pytest.mark.parametrize("trace", [None, EVERYTHING])
def test_a_grammar_that_gives_up_ends_the_sequence_with_what_it_has(gqa: GPT, trace: TraceOptions | None) -> None:
    core = engine_core(gqa)
    core._compiling = GrammarQueue(lambda grammar: GivesUp())
    run = decode(core, [SequenceRequest(0, PROMPT, PLAIN, grammar=Grammar("regex", ".*"), trace=trace)])
    assert (run.results[0].finish_reason, run.outputs[-1].error) == ("error", "too much")
    assert run.results[0].tokens == traced(gqa, SequenceRequest(0, PROMPT, PLAIN))[0].tokens[:2]
    assert len(traces_of(run)) == (2 if trace else 0)


def test_beam_search_cannot_be_traced() -> None:
    with pytest.raises(ParameterError, match="beam search"):
        SequenceRequest(0, PROMPT, PLAIN, beams=BeamSearch(2), trace=EVERYTHING)


@pytest.mark.parametrize("top", [-1, 21])
def test_a_bad_number_of_candidates_is_refused(top: int) -> None:
    with pytest.raises(ParameterError, match=r"trace\.top .* between 0 and 20"):
        TraceOptions(top)


def test_traces_pass_between_the_processes_unchanged(moe: GPT) -> None:
    core = engine_core(moe)
    core.add(SequenceRequest(0, PROMPT, FILTERED, trace=EVERYTHING))
    step: StepOutput = core.step()
    (output,) = step.outputs
    assert isinstance(output, SequenceOutput)
    assert len(output.traces) == 1
    received = decode_from_engine(encode(StepReport(0, step))[4:])
    assert received == StepReport(0, step)
