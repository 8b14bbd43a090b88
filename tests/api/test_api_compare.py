"""POST /v1/compare: several strategies of one prompt, against the same strategies one by one."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import combinations

import httpx
import pytest
from api_apps import client_of, make_app
from api_requests import Json, ask, events_of, refused
from core_engine import CoreEngine
from fake_engine import FakeEngine, Script, recite
from test_api_departure import Client, until_opened

from server.api.seeds import derive_seed
from server.api.settings import ApiSettings
from server.api.text_metrics import distinct, first_divergence, repetition_rate, similarity
from server.engine.types import BeamSearch, SequenceOutput, SequenceRequest
from server.errors import EngineUnavailable

pytestmark = pytest.mark.anyio

PROMPT = "whether 'tis nobler in the mind to suffer the slings and arrows of outrageous fortune"
SHARED: Json = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "ignore_eos": True, "seed": 3}
STRATEGIES: list[Json] = [
    {"name": "greedy", "temperature": 0},
    {"name": "hot", "temperature": 1.6},
    {"name": "own seed", "seed": 4, "top_k": 30},
    {"name": "penalties", "frequency_penalty": 1.0, "repetition_penalty": 1.2, "logit_bias": {"32": 2.5}},
    {"name": "preset", "strategy": "llama.cpp"},
    {"name": "mirostat", "mirostat": 2, "mirostat_tau": 3.0},
    {"name": "order", "samplers": ["min_p", "temperature"], "min_p": 0.05, "temperature": 2.0},
    {"name": "dry", "dry_multiplier": 2.0, "bad_words": [[101], [116, 104]], "max_tokens": 11},
    {"name": "guided", "guidance_scale": 1.4, "negative_prompt": "no"},
    {"name": "guided by the last token", "guidance_scale": 1.4},
    {"name": "beams", "beam_width": 3},
    {"name": "stopping", "stop": ["e", "\u0000"], "logprobs": 3},
]


@pytest.fixture(scope="module")
def core() -> CoreEngine:
    return CoreEngine()


@pytest.fixture
async def real(core: CoreEngine, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(make_app(core)) as client:
        yield client


async def compare(client: httpx.AsyncClient, **fields: object) -> Json:
    return await ask(client, "/v1/compare", {"model": "tiny", "prompt": "Say:", **fields})


async def alone(client: httpx.AsyncClient, fields: Json) -> Json:
    """The choice of the same strategy as a completion."""
    own = {name: value for name, value in fields.items() if name != "name"}
    body = {**SHARED, "logprobs": 0, "return_token_ids": True, **own}
    choice: Json = (await ask(client, "/v1/completions", body))["choices"][0]
    return choice


def by_name(answer: Json) -> dict[str, Json]:
    return {strategy["name"]: strategy for strategy in answer["strategies"]}


async def test_strategies_are_what_they_are_as_single_requests(real: httpx.AsyncClient) -> None:
    together = by_name(await compare(real, **SHARED, strategies=STRATEGIES))
    for strategy in STRATEGIES:
        own, single = together[strategy["name"]], await alone(real, strategy)
        for part in ("text", "token_ids", "finish_reason", "stop_reason", "seed"):
            assert own[part] == single[part], (strategy, part)
        assert own["logprobs"] == (single["logprobs"] if "logprobs" in strategy else None)
        logprobs = single["logprobs"]["token_logprobs"]
        assert own["metrics"]["total_logprob"] == math.fsum(logprobs)
    assert len({strategy["text"] for strategy in together.values()}) > 6


async def test_resolved_parameters_sent_back_repeat_each_strategy(real: httpx.AsyncClient) -> None:
    together = by_name(await compare(real, **{**SHARED, "seed": None}, strategies=STRATEGIES))
    for name, answer in together.items():
        parameters = {key: parameter["value"] for key, parameter in answer["resolved_parameters"].items()}
        body = {"model": "tiny", "prompt": PROMPT, "return_token_ids": True, **parameters}
        (choice,) = (await ask(real, "/v1/completions", body))["choices"]
        assert choice["token_ids"] == answer["token_ids"], name
        (replayed,) = (await compare(real, **{**SHARED, "seed": 99}, strategies=[parameters]))["strategies"]
        assert replayed["token_ids"] == answer["token_ids"], name


async def test_the_prompt_is_computed_once(core: CoreEngine, real: httpx.AsyncClient) -> None:
    num_before = len(core.stats)
    strategies = [{"temperature": temperature / 10} for temperature in range(12)]
    answer = await compare(real, **{**SHARED, "prompt": "x" * 100, "cache_salt": "once"}, strategies=strategies)
    steps = core.stats[num_before:]
    num_computed = sum(step.num_prompt_tokens for step in steps)
    num_hit = sum(step.num_prefix_hit_tokens for step in steps)
    assert num_computed == 100 + 11 * (100 - 96)  # all but the last, unfilled block
    assert num_hit == 11 * 96
    assert answer["usage"]["prompt_tokens"] == 100
    assert answer["usage"]["completion_tokens"] == 12 * 20


async def test_seeds_are_those_of_n_choices(real: httpx.AsyncClient) -> None:
    answer = await compare(real, **SHARED, seeds=4, temperature=1.3)
    fields = {**SHARED, "n": 4, "temperature": 1.3, "return_token_ids": True}
    choices = (await ask(real, "/v1/completions", fields))["choices"]
    assert [one["token_ids"] for one in answer["strategies"]] == [one["token_ids"] for one in choices]
    assert [one["seed"] for one in answer["strategies"]] == [derive_seed(3, index) for index in range(4)]
    assert [one["name"] for one in answer["strategies"]] == [f"seed={derive_seed(3, index)}" for index in range(4)]


async def test_streamed_events_joined_are_the_whole_answer(real: httpx.AsyncClient) -> None:
    fields: Json = {**SHARED, "strategies": STRATEGIES, "logprobs": 1}
    whole = await compare(real, **fields, cache_salt="whole")
    events = await streamed(real, {**fields, "cache_salt": "streamed"})  # neither finds the other's prefix cached
    last = events.pop()
    assert last["strategies"] == []
    assert (last["pairs"], last["usage"]) == (whole["pairs"], whole["usage"])
    for name, expected in by_name(whole).items():
        own = [event["strategies"][0] for event in events if event["strategies"][0]["name"] == name]
        assert "".join(one["text"] for one in own) == expected["text"]
        assert [token for one in own for token in one["token_ids"]] == expected["token_ids"]
        joined = [token for one in own for token in one["logprobs"]["token_logprobs"]]
        assert joined == expected["logprobs"]["token_logprobs"]
        assert own[0]["resolved_parameters"] == expected["resolved_parameters"]
        assert [one["finish_reason"] for one in own] == [None] * (len(own) - 1) + [expected["finish_reason"]]
        assert untimed(own[-1]["metrics"]) == untimed(expected["metrics"])
        assert not any("metrics" in one for one in own[:-1])


def untimed(metrics: Json) -> Json:
    return {name: value for name, value in metrics.items() if "second" not in name}


async def streamed(client: httpx.AsyncClient, fields: Json) -> list[Json]:
    answer = await client.post("/v1/compare", json={**fields, "stream": True})
    assert answer.status_code == 200, answer.text
    *events, end = events_of(answer.text)
    assert end == "[DONE]"
    return [json.loads(event) for event in events]


async def test_measures_are_those_of_the_tokens(real: httpx.AsyncClient) -> None:
    answer = await compare(real, **SHARED, strategies=STRATEGIES, logprobs=0)
    for own in answer["strategies"]:
        tokens, metrics = own["token_ids"], own["metrics"]
        logprobs = own["logprobs"]["token_logprobs"]
        assert metrics["num_tokens"] == len(tokens) == len(logprobs)
        assert metrics["mean_logprob"] == math.fsum(logprobs) / len(tokens)
        assert metrics["perplexity"] == math.exp(-metrics["mean_logprob"])
        assert 0 < metrics["mean_entropy"] < math.log(258)
        assert metrics["distinct_1"] == distinct(tokens, 1)
        assert metrics["distinct_2"] == distinct(tokens, 2)
        assert metrics["repetition_rate"] == repetition_rate(tokens)
        assert metrics["time_to_first_token_seconds"] > 0
        assert metrics["tokens_per_second"] > 0
    tokens_of = {name: own["token_ids"] for name, own in by_name(answer).items()}
    assert [tuple(pair["strategies"]) for pair in answer["pairs"]] == list(combinations(tokens_of, 2))
    for pair in answer["pairs"]:
        one, other = (tokens_of[name] for name in pair["strategies"])
        assert pair["first_divergence"] == first_divergence(one, other)
        assert pair["similarity"] == similarity(one, other)


async def test_a_traced_strategy_has_the_trace_it_has_alone_and_the_tokens_it_has_without(
    real: httpx.AsyncClient,
) -> None:
    strategy = {"temperature": 1.2, "top_k": 20, "trace": {"top": 2}}
    answer = await compare(real, **SHARED, strategies=[strategy, {**strategy, "name": "plain", "trace": None}])
    traced, plain = answer["strategies"]
    assert len(traced["trace"]) == 20
    assert traced["trace"] == (await alone(real, strategy))["trace"]
    assert traced["token_ids"] == plain["token_ids"]
    assert "trace" not in plain
    entropies = [entry["raw"]["entropy"] for entry in traced["trace"]]
    assert plain["metrics"]["mean_entropy"] == pytest.approx(math.fsum(entropies) / 20, rel=1e-5)


async def test_a_fork_can_be_compared_and_a_comparison_forked(real: httpx.AsyncClient) -> None:
    fields = {key: value for key, value in SHARED.items() if key != "prompt"}
    first = await compare(real, **SHARED, strategies=STRATEGIES)
    penalties = next(index for index, one in enumerate(STRATEGIES) if one["name"] == "penalties")
    fork = {"id": first["id"], "choice": penalties, "at_token": 6}
    body = {**fields, "fork": fork, "max_tokens": 14, "strategies": [STRATEGIES[penalties], {"temperature": 0}]}
    same, other = (await ask(real, "/v1/compare", body))["strategies"]
    assert same["token_ids"] == first["strategies"][penalties]["token_ids"][6:]
    assert other["token_ids"] != same["token_ids"]


async def test_messages_are_compared_as_the_chat_they_are(real: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "hi"}]
    strategies: list[Json] = [{"temperature": 0.7, "top_p": 0.9}, {"guidance_scale": 1.3, "negative_prompt": "ho"}]
    shared = {"model": "tiny", "messages": messages, "max_tokens": 12, "seed": 5}
    answer = await ask(real, "/v1/compare", {**shared, "strategies": strategies})
    for strategy, own in zip(strategies, answer["strategies"], strict=True):
        chat = await ask(real, "/v1/chat/completions", {**shared, **strategy, "return_token_ids": True})
        assert own["token_ids"] == chat["choices"][0]["token_ids"]
        assert answer["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"]


def failing(index: int) -> FakeEngine:
    """Its sequence of that id says two bytes, then fails."""

    def reply(request: SequenceRequest) -> Script:
        if request.id != index:
            return recite(b"Hello, world")(request)
        said = recite(b"He", then=None)(replace(request, params=replace(request.params, max_tokens=3)))
        return [said[0], SequenceOutput(0, finish_reason="error", error="the grammar has no end")]

    return FakeEngine(reply=reply)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_strategy_that_fails_does_not_harm_the_others(is_streamed: bool) -> None:
    body: Json = {"model": "tiny", "prompt": "a", "strategies": [{"name": name} for name in "abc"]}
    async with client_of(make_app(failing(1))) as client:
        events = await streamed(client, body) if is_streamed else [await ask(client, "/v1/compare", body)]
    answers = [strategy for event in events for strategy in event["strategies"]]
    assert [one["name"] for one in answers if "error" in one] == ["b"]
    assert next(one["error"]["message"] for one in answers if "error" in one) == "the grammar has no end"
    texts = {name: "".join(one["text"] for one in answers if one["name"] == name) for name in "abc"}
    assert texts == {"a": "Hello, world", "b": "H", "c": "Hello, world"}
    assert [pair["strategies"] for pair in events[-1]["pairs"]] == [["a", "c"]]


async def test_a_grammar_the_engine_refuses_is_the_mistake_of_its_strategy() -> None:
    engine = failing(1)
    script = engine.reply
    engine.reply = lambda request: [replace(step, blames_grammar=bool(step.error)) for step in script(request)]
    async with client_of(make_app(engine)) as client:
        answer = await compare(client, strategies=[{}, {"name": "json", "json_object": True}])
        shared = await compare(client, json_object=True, seeds=2)
    assert answer["strategies"][1]["error"]["param"] == "strategies[1].json_object"
    assert answer["strategies"][1]["error"]["message"].startswith("strategies[1].json_object ")
    assert answer["strategies"][1]["resolved_parameters"]["json_object"] == {"value": True, "source": "request"}
    assert shared["strategies"][1]["error"]["param"] == "json_object"
    assert "json_object" not in answer["strategies"][0]["resolved_parameters"]


async def test_an_engine_that_dies_is_an_error_of_the_whole() -> None:
    async with client_of(make_app(FakeEngine(fails_after=0))) as client:
        await refused(client, "/v1/compare", {"model": "tiny", "prompt": "a", "seeds": 2}, 500)
    async with client_of(make_app(FakeEngine(fails_after=2))) as client:
        answer = await client.post("/v1/compare", json={"model": "tiny", "prompt": "a", "seeds": 2, "stream": True})
    assert json.loads(events_of(answer.text)[-1])["error"]["code"] == "engine_error"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_client_that_leaves_ends_every_strategy(is_streamed: bool) -> None:
    engine = FakeEngine(holds_after=1)
    body = {"model": "tiny", "prompt": "a", "seeds": 3, "stream": is_streamed}
    client = Client(engine, "/v1/compare", body)
    await asyncio.wait_for(until_opened(engine), 5)
    client.left.set()
    await asyncio.wait_for(engine.opened[0].closed.wait(), 5)
    await asyncio.wait_for(client.exchange, 5)
    assert len(engine.requests[0]) == 3


async def test_one_strategys_stop_string_ends_it_alone(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await compare(client, strategies=[{"stop": "l"}, {"name": "rest"}])
    assert [one["text"] for one in answer["strategies"]] == ["He", "Hello, world"]
    assert engine.opened[0].stopped == {0}
    assert engine.opened[0].num_closes == 1


async def test_names_come_from_the_parameters_and_never_twice(client: httpx.AsyncClient) -> None:
    strategies: list[Json] = [
        {},
        {},
        {"temperature": 0.5, "top_k": 3},
        {"temperature": 0.5, "top_k": 3},
        {"top_p": None},
        {"speculative": {"num_tokens": 1}, "stop": ["a", "b"]},
        {"allowed_token_ids": list(range(100, 200))},
    ]
    answer = await compare(client, strategies=strategies)
    names = [one["name"] for one in answer["strategies"]]
    long = [
        'speculative={"num_tokens": 1} stop=["a", "b"]',
        "allowed_token_ids=[100, 101, 102, 103, 104, 105, 106, 107, ",
    ]
    assert names == [
        "default",
        "default (2)",
        "temperature=0.5 top_k=3",
        "temperature=0.5 top_k=3 (2)",
        "default (3)",
        *long,
    ]


async def test_a_strategys_own_parameters_go_before_the_shared_ones(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await compare(
        client, temperature=0.5, max_completion_tokens=5, strategies=[{"max_tokens": 7}, {"temperature": None}]
    )
    first, second = (sequence.params for sequence in engine.requests[0])
    assert (first.temperature, first.max_tokens) == (0.5, 7)
    assert (second.temperature, second.max_tokens) == (0.5, 5)
    assert first.seed == second.seed


@pytest.mark.parametrize(
    ("fields", "parameter", "part"),
    [
        ({"strategies": [{}, {}, {}, {"top_p": 1.5}]}, "strategies[3].top_p", "is 1.5; it must be above 0"),
        ({"strategies": [{"top_k": 1.0}]}, "strategies[0].top_k", "is 1.0; it must be an integer"),
        ({"strategies": [{"stop": [""]}]}, "strategies[0].stop[0]", 'is ""'),
        ({"strategies": [{"logit_bias": {"9999": 1}}]}, "strategies[0].logit_bias", "vocabulary ends at 257"),
        ({"strategies": [{"samplers": ["x"]}]}, "strategies[0].samplers[0]", "one of"),
        ({"strategies": [{"n": 2}]}, "strategies[0].n", "Unknown parameter"),
        ({"strategies": [{"model": "tiny"}]}, "strategies[0].model", "Unknown parameter"),
        ({"strategies": [{"suffix": "x"}]}, "strategies[0].suffix", "not supported"),
        ({"strategies": [{"user": "x"}]}, "strategies[0].user", "Unknown parameter"),
        ({"strategies": [{"name": ""}]}, "strategies[0].name", "between 1 and 64"),
        ({"strategies": [{"name": "x" * 65}]}, "strategies[0].name", "has 65 characters"),
        ({"strategies": [{"name": "x"}, {"name": "x"}]}, "strategies[1].name", "strategies[0]"),
        ({"strategies": [{"max_tokens": 510}]}, "strategies[0].max_tokens", "together 514"),
        ({"strategies": [{}, {"min_tokens": 17}]}, "strategies[1].min_tokens", "between 0 and 16"),
        ({"strategies": [{"min_tokens": 9}], "max_tokens": 4}, "strategies[0].min_tokens", "between 0 and 4"),
        ({"strategies": [{"logprobs": 21}]}, "strategies[0].logprobs", "at most 20"),
        ({"strategies": [1]}, "strategies[0]", "an object"),
        ({"strategies": []}, "strategies", "1 to 16"),
        ({"strategies": [{}] * 17}, "strategies", "the limit is 16"),
        ({"strategies": {}}, "strategies", "an array"),
        ({"strategies": [{}], "seeds": 2}, "strategies", "one of them"),
        ({}, "strategies", "one of them"),
        ({"seeds": 0}, "seeds", "at least 1"),
        ({"seeds": 17}, "seeds", "at most 16"),
        ({"seeds": 2, "top_p": 2.0}, "top_p", "is 2.0"),
        ({"seeds": 2, "n": 2}, "n", "not supported"),
        ({"seeds": 2, "echo": True}, "echo", "not supported"),
        ({"seeds": 2, "prompt": ["a", "b"]}, "prompt", "has 2 prompts"),
        ({"seeds": 2, "messages": [{"role": "user", "content": "x"}]}, "messages", "besides prompt"),
        ({"seeds": 2, "prompt": "a" * 600}, "prompt", "context length"),
        ({"seeds": 2, "frobnicate": 1}, "frobnicate", "Unknown parameter"),
        ({"seeds": 2, "add_generation_prompt": False}, "add_generation_prompt", "no messages"),
        ({"seeds": 2, "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", "no messages"),
        ({"seeds": 16, "max_tokens": 400, "logprobs": 20}, "seeds", "the limit is 131072"),
        ({"seeds": 16, "max_tokens": 300, "trace": {"top": 20}}, "trace", "the limit is 524288"),
    ],
)
async def test_mistakes_are_refused_naming_the_strategy(
    client: httpx.AsyncClient, engine: FakeEngine, fields: Json, parameter: str, part: str
) -> None:
    error = await refused(client, "/v1/compare", {"model": "tiny", "prompt": "Say:", **fields})
    assert error["param"] == parameter
    assert part in error["message"]
    assert engine.requests == []


async def test_a_server_with_fewer_choices_compares_fewer_strategies() -> None:
    async with client_of(make_app(FakeEngine(), settings=ApiSettings(max_choices=2))) as client:
        error = await refused(client, "/v1/compare", {"model": "tiny", "prompt": "a", "strategies": [{}] * 3})
        assert (error["param"], error["message"]) == ("strategies", "strategies has 3; the limit is 2.")
        await compare(client, seeds=2)


async def test_what_has_no_prompt_is_told_what_could_be_one(client: httpx.AsyncClient) -> None:
    error = await refused(client, "/v1/compare", {"model": "tiny", "seeds": 2})
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")


async def test_a_full_or_absent_engine_refuses_as_everywhere() -> None:
    engine = FakeEngine(refusal=EngineUnavailable("restarting"))
    async with client_of(make_app(engine)) as client:
        await refused(client, "/v1/compare", {"model": "tiny", "prompt": "a", "seeds": 5}, 503)
    assert engine.checked == [("tiny", 5)]


@pytest.mark.parametrize(
    ("shared", "own"),
    [
        ({"num_beams": 4}, {"beam_width": 2}),
        ({"use_beam_search": True, "num_beams": 4}, {"use_beam_search": False, "temperature": 0.5}),
        ({"use_beam_search": False}, {"num_beams": 2}),
        ({"regex": "a+"}, {"choice": ["a", "b"]}),
        ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "text"}}),
        ({"max_tokens": 3}, {"max_completion_tokens": 4}),
    ],
)
async def test_a_strategys_way_of_saying_something_takes_the_place_of_the_shared_way(
    client: httpx.AsyncClient, engine: FakeEngine, shared: Json, own: Json
) -> None:
    await compare(client, seed=1, **shared, strategies=[own])
    await compare(client, seed=1, strategies=[own])
    together, alone = engine.requests
    assert together == alone
    await compare(client, seed=1, num_beams=4, strategies=[{"use_beam_search": True}])
    assert engine.requests[-1][0].beams == BeamSearch(4)
