"""The `trace` parameter: what reaches the engine, what is refused, and how a trace looks, whole and streamed."""

from array import array
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest
from api_requests import Json, ask, chat, choice_of, complete, refused, stream
from fake_engine import EOS, FakeEngine, Reply, Script, info, recite

from server.api.trace import MAX_TRACE_NUMBERS
from server.engine.tracing_types import (
    Contender,
    DraftTrace,
    ExpertsTrace,
    StageTrace,
    TokenTrace,
    TraceOptions,
)
from server.engine.types import EngineInfo, SequenceRequest

pytestmark = pytest.mark.anyio

COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
MOE = replace(info(), num_layers=2, num_heads=3, num_experts_per_token=2)

PLAIN = TokenTrace(
    entropy=1.5,
    top_tokens=(104, 72),
    top_logprobs=(-0.5, -1.0),
    logprob=-1.0,
    rank=2,
    stages=(StageTrace("temperature", 258, 258, 0.0, (104,), (0.75,)), StageTrace("top_k", 258, 2, 0.125, (), ())),
    final_probability=0.25,
    final_rank=2,
    winner=None,
    runner_up=None,
)
FULL = replace(
    PLAIN,
    winner=Contender(72, -1.0, 2.5, 1.5),
    runner_up=Contender(104, -0.5, 0.25, -0.25),
    drafts=(DraftTrace(72, "accepted"), DraftTrace(105, "behind the end")),
    experts=(ExpertsTrace((3, 0), (0.75, 0.25)), ExpertsTrace((1, 2), (0.5, 0.5))),
    attention=((array("f", [0.5, 0.5]).tobytes(), array("f", [1 / 3, 2 / 3]).tobytes()),),
)


def tracing(reply: Reply) -> Reply:
    """The same with a trace for every token; their entropies count up."""

    def traced(request: SequenceRequest) -> Script:
        if request.trace is None:
            return reply(request)
        steps, number = [], 0
        for step in reply(request):
            traces = tuple(replace(PLAIN, entropy=float(number + index)) for index in range(len(step.tokens)))
            steps.append(replace(step, traces=traces))
            number += len(traces)
        return steps

    return traced


def saying(trace: TokenTrace) -> Reply:
    """One token with that trace."""
    return lambda request: [replace(recite(b"H", then=None)(request)[0], traces=(trace,), finish_reason="length")]


async def test_it_reaches_the_engine_and_is_off_by_default(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.known["tiny"] = MOE
    for asked, options in (
        (None, None),
        ({}, TraceOptions(5)),
        ({"top": 0}, TraceOptions(0)),
        ({"top": 20, "experts": True, "attention": True}, TraceOptions(20, experts=True, attention=True)),
        ({"experts": False, "attention": None}, TraceOptions(5)),
    ):
        await complete(client, trace=asked, max_tokens=4)
        assert engine.requests[-1][0].trace == options
        await chat(client, trace=asked, max_tokens=4)
        assert engine.requests[-1][0].trace == options


async def test_who_does_not_ask_is_told_nothing(client: httpx.AsyncClient) -> None:
    assert "trace" not in choice_of(await complete(client))
    assert "trace" not in choice_of(await chat(client))


async def test_a_trace_is_readable_json(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.known["tiny"], engine.reply = MOE, saying(FULL)
    everything = {"experts": True, "attention": True}
    whole: list[Json] = [
        choice_of(await ask_for(client, max_tokens=1, trace=everything)) for ask_for in (complete, chat)
    ]
    (entry,) = whole[0]["trace"]
    assert whole[1]["trace"] == [entry]
    h, capital = {"token_id": 104, "token": "h"}, {"token_id": 72, "token": "H"}
    raw = [
        {**h, "logprob": -0.5, "probability": pytest.approx(0.60653, abs=1e-5)},
        {**capital, "logprob": -1.0, "probability": pytest.approx(0.36788, abs=1e-5)},
    ]
    temperature = {"name": "temperature", "candidates_before": 258, "candidates_after": 258}
    top_k = {"name": "top_k", "candidates_before": 258, "candidates_after": 2}
    assert entry == {
        "chosen": {
            **capital,
            "rank": 2,
            "probability": pytest.approx(0.36788, abs=1e-5),
            "logprob": -1.0,
            "final_rank": 2,
            "final_probability": 0.25,
        },
        "raw": {"entropy": 1.5, "top": raw},
        "stages": [
            {**temperature, "removed_probability": 0.0, "top": [{**h, "probability": 0.75}]},
            {**top_k, "removed_probability": 0.125, "top": []},
        ],
        "draw": {
            "winner": {**capital, "logit": -1.0, "noise": 2.5, "score": 1.5},
            "runner_up": {**h, "logit": -0.5, "noise": 0.25, "score": -0.25},
        },
        "drafts": [
            {**capital, "verdict": "accepted", "reason": "the model chose it, too"},
            {"token_id": 105, "token": "i", "verdict": "not verified", "reason": "the sequence ended before it"},
        ],
        "experts": [
            [{"expert": 3, "weight": 0.75}, {"expert": 0, "weight": 0.25}],
            [{"expert": 1, "weight": 0.5}, {"expert": 2, "weight": 0.5}],
        ],
        "attention": [[[0.5, 0.5], [0.333333, 0.666667]]],
    }


async def test_what_was_not_asked_for_is_left_out_and_no_noise_is_null(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.reply = saying(PLAIN)
    (entry,) = choice_of(await complete(client, trace={}))["trace"]
    assert set(entry) == {"chosen", "raw", "stages", "draw", "drafts"}
    assert (entry["draw"], entry["drafts"]) == (None, [])
    engine.reply = saying(replace(PLAIN, winner=Contender(72, 0.0, 1.0, 1.0)))
    (entry,) = choice_of(await complete(client, trace={}))["trace"]
    assert entry["draw"]["runner_up"] is None


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(
    "fields", [{}, {"stop": ["wor"]}, {"stop": ["lo, w", "x"], "include_stop_str_in_output": True}]
)
async def test_a_streamed_trace_is_the_whole_one(
    client: httpx.AsyncClient, engine: FakeEngine, group: int, fields: dict[str, object]
) -> None:
    engine.reply = tracing(recite(b"Hello, world", group))
    asked = {"max_tokens": 30, "n": 2, "trace": {"top": 1}, "return_token_ids": True, **fields}
    for path, prompt in ((COMPLETE, {"prompt": "Say:"}), (CHAT, {"messages": MESSAGES})):
        whole = await ask(client, path, {"model": "tiny", **prompt, **asked})
        events = await stream(client, path, {**prompt, **asked})
        for index in (0, 1):
            choice = choice_of(whole, index)
            chunks = [one for event in events for one in event["choices"] if one["index"] == index]
            streamed = [entry for chunk in chunks for entry in chunk.get("trace", [])]
            assert streamed == choice["trace"]
            assert [entry["raw"]["entropy"] for entry in streamed] == list(range(len(choice["token_ids"])))
            assert all(len(chunk.get("trace", [])) == len(chunk.get("token_ids", [])) for chunk in chunks)


async def test_the_token_that_ends_the_text_has_a_trace_when_it_is_shown(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.reply = tracing(recite(b"Hi"))
    choice = choice_of(await complete(client, trace={}, include_stop_str_in_output=True, return_token_ids=True))
    assert choice["token_ids"] == [*b"Hi", EOS]
    assert len(choice["trace"]) == 3


@pytest.mark.parametrize(
    ("value", "parameter", "message"),
    [
        ({"top": 21}, "trace.top", "21; it must be at most 20"),
        ({"top": -1}, "trace.top", "-1; it must be at least 0"),
        ({"top": True}, "trace.top", "true; it must be an integer"),
        ({"experts": 1}, "trace.experts", "must be a boolean"),
        ({"heads": True}, "trace.heads", "Unknown parameter"),
        (True, "trace", "must be an object"),
        ({"experts": True}, "trace.experts", "no mixture of experts"),
        ({"attention": True}, "trace.attention", "does not tell"),
    ],
)
async def test_bad_values_name_field_value_and_limit(
    client: httpx.AsyncClient, value: object, parameter: str, message: str
) -> None:
    for path, prompt in ((COMPLETE, {"prompt": "Say:"}), (CHAT, {"messages": MESSAGES})):
        error = await refused(client, path, {"model": "tiny", **prompt, "trace": value})
        assert error["param"] == parameter
        assert message in error["message"]


async def test_beam_search_has_no_trace(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "Say:", "beam_width": 2, "trace": {}}
    error = await refused(client, COMPLETE, body)
    assert error["param"] == "trace"
    assert "beam search" in error["message"]


def attending(info: EngineInfo, prompt: int, tokens: int) -> int:
    """Attention weights of a sequence, counted one token after the other."""
    return sum(info.num_layers * info.num_heads * length for length in range(prompt, prompt + tokens))


@pytest.mark.parametrize(
    ("fields", "of_one_more"),
    [
        # Per token: 16 numbers, 3 for each of 20 candidates, and two stages of 3 and 2 for each candidate.
        ({"trace": {"top": 20}}, lambda tokens: tokens * (16 + 60 + 2 * 43)),
        ({"trace": {"top": 0, "experts": True}}, lambda tokens: tokens * (16 + 6 + 2 * 2 * 2)),
        ({"trace": {"top": 20}, "temperature": 0.5, "top_k": 9}, lambda tokens: tokens * (16 + 60 + 4 * 43)),
        ({"trace": {"top": 20}, "speculative": {"method": "ngram"}}, lambda tokens: tokens * (16 + 60 + 2 * 43 + 4)),
        ({"trace": {"top": 0, "attention": True}}, lambda tokens: tokens * (16 + 6) + attending(MOE, 4, tokens)),
    ],
)
async def test_the_numbers_of_one_answer_are_bounded(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, object], of_one_more: Callable[[int], int]
) -> None:
    engine.known["tiny"] = replace(MOE, context_length=100_000)
    tokens = next(count for count in range(100_000) if 3 * of_one_more(count) > MAX_TRACE_NUMBERS)
    await complete(client, n=3, max_tokens=tokens - 1, **fields)
    body = {"model": "tiny", "prompt": "Say:", "n": 3, "max_tokens": tokens, **fields}
    error = await refused(client, COMPLETE, body)
    assert error["param"] == "trace"
    assert (
        f"up to {3 * of_one_more(tokens)} numbers in one answer; the limit is {MAX_TRACE_NUMBERS}" in error["message"]
    )
