"""Forks: going on from the middle of an earlier answer; and whose answers they may be."""

from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from api_apps import MODEL, QUEUE, client_of, make_app
from api_requests import Json, ask, chat, choice_of, complete, refused, stream
from core_engine import CoreEngine
from fake_engine import FakeEngine, info

from server.api.app import create_app
from server.api.instruments import Instruments
from server.api.recent import RecentAnswer, RecentAnswers
from server.api.settings import ApiSettings
from server.engine.config import EngineConfig
from server.engine.params import SamplingParams
from server.engine.sampling.state import DecodingState
from server.engine.types import SequenceRequest
from server.timeline import Timeline

pytestmark = pytest.mark.anyio

PROMPT = "to be or not to be, that is"
PLAIN: Json = {"prompt": PROMPT, "max_tokens": 24, "ignore_eos": True, "logprobs": 2, "return_token_ids": True}
STRATEGIES: dict[str, Json] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.2, "top_k": 40},
    "cut off": {"typical_p": 0.9, "min_p": 0.01},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.05},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 0.9, "repetition_penalty": 1.3},
    "windowed penalties": {"frequency_penalty": 2.0, "presence_penalty": 1.0, "repeat_last_n": 7},
    "dry": {"dry_multiplier": 3.0, "dry_allowed_length": 1, "temperature": 0.3},
    "no repeated n-grams": {"no_repeat_ngram_size": 2, "temperature": 0},
    "bad words": {"bad_words": [[101], [116, 104]], "logit_bias": {"32": 3}},
    "guided": {"guidance_scale": 1.5, "negative_prompt": "so"},
    "guided away from the last token": {"guidance_scale": 2.0, "frequency_penalty": 0.3},
}


@pytest.fixture(scope="module")
def core() -> CoreEngine:
    return CoreEngine()


@pytest.fixture
async def real(core: CoreEngine, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(make_app(core)) as client:
        yield client


def fork_of(answer: Json, at_token: int, choice: int = 0) -> Json:
    return {"id": answer["id"], "choice": choice, "at_token": at_token}


async def forked(client: httpx.AsyncClient, fork: Json, **fields: object) -> Json:
    return await ask(client, "/v1/completions", {"model": "tiny", "fork": fork, **fields})


@pytest.mark.parametrize("name", STRATEGIES)
async def test_a_fork_with_the_same_parameters_repeats_the_rest(real: httpx.AsyncClient, name: str) -> None:
    answer = await complete(real, **PLAIN, **STRATEGIES[name], seed=5)
    original = choice_of(answer)
    for at_token in (0, 1, 9, 23):
        fields = {**PLAIN, **STRATEGIES[name], "max_tokens": 24 - at_token}
        del fields["prompt"]
        rest = choice_of(await forked(real, fork_of(answer, at_token), **fields))
        assert rest["seed"] == original["seed"]
        assert rest["token_ids"] == original["token_ids"][at_token:]
        for part in ("token_logprobs", "top_logprobs"):
            assert rest["logprobs"][part] == original["logprobs"][part][at_token:]


async def test_penalties_would_not_repeat_if_the_output_were_forgotten(real: httpx.AsyncClient) -> None:
    answer = await complete(real, **PLAIN, **STRATEGIES["penalties"], seed=5)
    original = choice_of(answer)
    tokens = original["prompt_token_ids"] + original["token_ids"][:9]
    fields = {**PLAIN, **STRATEGIES["penalties"], "max_tokens": 15, "prompt": tokens, "seed": 5}
    assert choice_of(await complete(real, **fields))["token_ids"] != original["token_ids"][9:]


async def test_a_fork_of_a_fork_repeats_the_rest_too(real: httpx.AsyncClient) -> None:
    fields = {**PLAIN, **STRATEGIES["penalties"]}
    answer = await complete(real, **fields, seed=5)
    del fields["prompt"]
    fork = await forked(real, fork_of(answer, 5), **{**fields, "max_tokens": 19})
    again = await forked(real, fork_of(fork, 7), **{**fields, "max_tokens": 12})
    assert choice_of(again)["token_ids"] == choice_of(answer)["token_ids"][12:]


async def test_a_fork_under_other_parameters_goes_its_own_way(real: httpx.AsyncClient) -> None:
    answer = await complete(real, **PLAIN, temperature=1.5, seed=5)
    original = choice_of(answer)
    other = choice_of(await forked(real, fork_of(answer, 4), temperature=0, max_tokens=20, return_token_ids=True))
    assert other["prompt_token_ids"] == original["prompt_token_ids"] + original["token_ids"][:4]
    assert other["token_ids"] != original["token_ids"][4:]


async def test_a_streamed_answer_and_a_chat_can_be_forked(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    events = await stream(client, "/v1/completions", {"prompt": "ab", "n": 2, "seed": 9})
    await forked(client, fork_of(events[0], 3, choice=1))
    request = engine.requests[-1][0]
    assert request.prompt == tuple(b"abHel")
    assert request.num_forked == 3
    assert request.params.seed == engine.requests[0][1].params.seed
    answer = await chat(client)
    await forked(client, fork_of(answer, 1), seed=4)
    assert engine.requests[-1][0].prompt == (*engine.requests[-2][0].prompt, ord("H"))
    assert engine.requests[-1][0].params.seed == 4


async def test_a_stop_strings_cut_is_the_end_of_what_can_be_forked(client: httpx.AsyncClient) -> None:
    answer = await complete(client, stop="wor")
    await forked(client, fork_of(answer, 7))
    error = await refused(client, "/v1/completions", {"model": "tiny", "fork": fork_of(answer, 8)})
    assert (error["param"], error["message"]) == ("fork.at_token", "fork.at_token is 8; it must be at most 7.")


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"fork": {"at_token": 0}}, "fork.id"),
        ({"fork": {"id": "x"}}, "fork.at_token"),
        ({"fork": {"id": "x", "at_token": -1}}, "fork.at_token"),
        ({"fork": {"id": "x", "at_token": 0, "choice": 1.0}}, "fork.choice"),
        ({"fork": {"id": "x" * 129, "at_token": 0}}, "fork.id"),
        ({"fork": {"id": "x", "at_token": 0}, "prompt": "a"}, "fork"),
        ({"fork": 1}, "fork"),
        ({"fork": None}, "prompt"),
    ],
)
async def test_bad_forks_are_refused_by_name(client: httpx.AsyncClient, fields: Json, parameter: str) -> None:
    assert (await refused(client, "/v1/completions", {"model": "tiny", **fields}))["param"] == parameter


async def test_a_choice_that_is_not_there_is_refused(client: httpx.AsyncClient) -> None:
    answer = await complete(client, n=2)
    error = await refused(client, "/v1/completions", {"model": "tiny", "fork": fork_of(answer, 0, choice=2)})
    assert (error["param"], error["message"]) == ("fork.choice", "fork.choice is 2; it must be at most 1.")


async def test_somebody_elses_answer_is_as_unknown_as_one_that_never_was() -> None:
    app = make_app(FakeEngine(), settings=ApiSettings(api_keys=("one", "two")))
    async with client_of(app, authorization="Bearer one") as one, client_of(app, authorization="Bearer two") as two:
        answer = await complete(one, cache_salt="s")
        body = {"model": "tiny", "fork": fork_of(answer, 1), "cache_salt": "s"}
        await ask(one, "/v1/completions", body)
        other_key = await refused(two, "/v1/completions", body, 404)
        other_salt = await refused(one, "/v1/completions", {**body, "cache_salt": "t"}, 404)
        never = await refused(one, "/v1/completions", {**body, "fork": {"id": "cmpl-0", "at_token": 0}}, 404)
    assert other_key == other_salt
    assert never == {**other_key, "message": other_key["message"].replace(answer["id"], "cmpl-0")}
    assert (never["param"], never["code"]) == ("fork.id", "answer_not_found")


async def test_an_answer_of_another_model_cannot_be_forked() -> None:
    engine = FakeEngine(known={"tiny": info(), "other": info()})
    other = replace(MODEL, name="other")
    instruments = Instruments(lambda: b"", Timeline(["tiny", "other"]), QUEUE, EngineConfig())
    async with client_of(create_app(engine, [MODEL, other], ApiSettings(), instruments)) as client:
        answer = await complete(client)
        error = await refused(client, "/v1/completions", {"model": "other", "fork": fork_of(answer, 0)})
    assert error["param"] == "fork.id"
    assert "tiny" in error["message"]


def sequence(num_prompt: int, salt: str = "", id_: int = 0) -> SequenceRequest:
    return SequenceRequest(id_, tuple(range(num_prompt)), SamplingParams(), salt)


def test_the_answers_longest_not_asked_for_are_forgotten_first() -> None:
    recent = RecentAnswers(max_answers=2, max_tokens=1_000)
    for name in "ab":
        recent.keep(name, RecentAnswer.of("m", [sequence(3)], [[1, 2]]))
    assert recent.find("a", "") is not None
    recent.keep("c", RecentAnswer.of("m", [sequence(3)], [[1, 2]]))
    assert [recent.find(name, "") is not None for name in "abc"] == [True, False, True]


def test_tokens_are_bounded_for_each_tenant_by_itself() -> None:
    recent = RecentAnswers(max_answers=100, max_tokens=20)
    recent.keep("theirs", RecentAnswer.of("m", [sequence(10, "k1|")], [[0] * 10]))
    for number in range(5):
        recent.keep(str(number), RecentAnswer.of("m", [sequence(5, "k2|s")], [[0] * 5]))
    assert [recent.find(str(number), "k2|s") is not None for number in range(5)] == [False, False, False, True, True]
    recent.keep("huge", RecentAnswer.of("m", [sequence(20, "k2|s")], [[0]]))
    assert recent.find("huge", "k2|s") is None
    assert recent.find("4", "k2|s") is not None
    assert recent.find("theirs", "k1|") is not None


def test_choices_of_one_prompt_count_it_once() -> None:
    one = sequence(7)
    answer = RecentAnswer.of("m", [one, replace(one, id=1)], [[1, 2], [3]])
    assert answer.num_tokens == 7 + 3


@pytest.mark.parametrize("window", [-1, 0, 3, 50])
def test_a_state_that_begins_forked_is_the_state_that_got_there(window: int) -> None:
    params = SamplingParams(frequency_penalty=1.0, repeat_last_n=window, dry_multiplier=1.0, dry_breakers=((4,),))
    prompt, output = [1, 2, 1, 4], [1, 5, 4, 5, 1, 1]
    grown = DecodingState(params, prompt, 8)
    for token in output:
        grown.append(token)
    begun = DecodingState(params, prompt + output, 8, num_forked=len(output))
    assert begun.seen.tolist() == grown.seen.tolist()
    assert begun.said.tolist() == grown.said.tolist()
    assert begun.unbroken == grown.unbroken
    assert begun.tokens.tolist() == grown.tokens.tolist()
    begun.append(5)
    grown.append(5)
    assert begun.said.tolist() == grown.said.tolist()


async def test_a_prompt_of_null_is_none(client: httpx.AsyncClient) -> None:
    first = await complete(client)
    await forked(client, fork_of(first, 2), prompt=None)
    error = await refused(client, "/v1/completions", {"model": "tiny", "prompt": None})
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")
