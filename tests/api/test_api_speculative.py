"""The `speculative` parameter: what reaches the engine, what is refused, and what the usage says came of it."""

from dataclasses import replace

import httpx
import pytest
from api_apps import client_of, make_app
from api_requests import Json, ask, complete, refused, stream
from fake_engine import FakeEngine, Script, info

from server.api.settings import ApiSettings
from server.engine.types import SequenceOutput, SequenceRequest, Speculation

pytestmark = pytest.mark.anyio

COMPLETE = "/v1/completions"
BODY: Json = {"model": "tiny", "prompt": "Say:", "max_tokens": 16}


def asked(engine: FakeEngine) -> Speculation:
    return engine.requests[-1][0].speculation


def drafted(request: SequenceRequest) -> Script:
    """Ten tokens in five steps. Of four drafts the first three, none, and the first are right; of one, that one."""
    text = b"speculated"
    return [
        SequenceOutput(0, tuple(text[:1])),
        SequenceOutput(0, tuple(text[1:5]), num_drafted=4, num_accepted=3),
        SequenceOutput(0, tuple(text[5:6]), num_drafted=4, num_accepted=0),
        SequenceOutput(0, tuple(text[6:8]), num_drafted=4, num_accepted=1),
        SequenceOutput(0, tuple(text[8:]), num_drafted=1, num_accepted=1, finish_reason="length"),
    ]


DETAILS = {
    "accepted_prediction_tokens": 5,
    "rejected_prediction_tokens": 8,
    "tokens_per_target_step": 2.0,
    "acceptance_by_position": [3 / 4, 1 / 3, 1 / 3, 0.0],
}


async def test_it_reaches_the_engine_and_is_off_by_default(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await complete(client)
    assert asked(engine) == Speculation("off", 4)
    await complete(client, speculative={"method": "suffix", "num_tokens": 7})
    assert asked(engine) == Speculation("suffix", 7)
    await complete(client, speculative={"method": "ngram"})
    assert asked(engine) == Speculation("ngram", 4)
    await complete(client, speculative={"num_tokens": 2})
    assert asked(engine) == Speculation("auto", 2)
    await complete(client, speculative=None)
    assert asked(engine) == Speculation("off", 4)


async def test_the_servers_default_is_for_requests_that_do_not_say(engine: FakeEngine) -> None:
    settings = ApiSettings(speculation=Speculation("ngram", 3))
    async with client_of(make_app(engine, settings=settings)) as client:
        await complete(client)
        assert asked(engine) == Speculation("ngram", 3)
        await complete(client, speculative={"num_tokens": 8})
        assert asked(engine) == Speculation("ngram", 8)
        await complete(client, speculative={"method": "off"})
        assert asked(engine).method == "off"


async def test_the_resolved_parameters_say_how_and_who_chose_it(client: httpx.AsyncClient) -> None:
    answer = await complete(client, speculative={"method": "auto"}, return_parameters=True)
    told = answer["resolved_parameters"]["speculative"]
    assert told == {"value": {"method": "auto", "num_tokens": 4}, "source": "request"}
    answer = await complete(client, return_parameters=True)
    assert answer["resolved_parameters"]["speculative"]["source"] == "server"


async def test_a_draft_model_is_asked_for_only_where_there_is_one(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {**BODY, "speculative": {"method": "draft"}}
    error = await refused(client, COMPLETE, body)
    assert error["param"] == "speculative.method"
    assert 'is "draft", but this model has no draft' in str(error["message"])
    engine.known["tiny"] = replace(info(), has_draft_model=True)
    await ask(client, COMPLETE, body)
    assert asked(engine) == Speculation("draft", 4)


@pytest.mark.parametrize(
    ("value", "parameter", "message"),
    [
        ({"method": "magic"}, "speculative.method", "'off', 'draft', 'ngram', 'suffix' or 'auto'"),
        ({"num_tokens": 0}, "speculative.num_tokens", "0; it must be at least 1"),
        ({"num_tokens": 9}, "speculative.num_tokens", "9; it must be at most 8"),
        ({"num_tokens": 2.5}, "speculative.num_tokens", "2.5; it must be an integer"),
        ({"model": "x"}, "speculative.model", "Unknown parameter"),
        ("auto", "speculative", "must be an object"),
    ],
)
async def test_bad_values_name_field_value_and_limit(
    client: httpx.AsyncClient, value: object, parameter: str, message: str
) -> None:
    for path, body in ((COMPLETE, BODY), ("/v1/chat/completions", {"model": "tiny", "messages": [MESSAGE]})):
        error = await refused(client, path, {**body, "speculative": value})
        assert error["param"] == parameter
        assert message in str(error["message"])


MESSAGE: Json = {"role": "user", "content": "Hi"}


async def test_the_usage_says_what_came_of_the_drafts(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.reply = drafted
    answer = await complete(client, speculative={"method": "ngram"})
    assert answer["usage"]["completion_tokens_details"] == DETAILS
    answer = await complete(client)
    assert "completion_tokens_details" not in answer["usage"]


async def test_choices_add_up_and_streams_say_the_same(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.reply = drafted
    answer = await complete(client, n=3, speculative={"method": "ngram"})
    details = answer["usage"]["completion_tokens_details"]
    assert details == {**DETAILS, "accepted_prediction_tokens": 15, "rejected_prediction_tokens": 24}
    body = {**BODY, "speculative": {"method": "ngram"}, "stream_options": {"include_usage": True}}
    last = (await stream(client, COMPLETE, body))[-1]
    assert last["usage"]["completion_tokens_details"] == DETAILS


async def test_drafts_behind_a_stop_string_are_no_part_of_the_answer(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.reply = lambda request: [
        SequenceOutput(0, tuple(b"Hello, wo"), num_drafted=8, num_accepted=8),
        SequenceOutput(0, tuple(b"rld"), finish_reason="length"),
    ]
    answer = await complete(client, speculative={"method": "ngram", "num_tokens": 8}, stop="l")
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["usage"]["completion_tokens_details"] == {
        "accepted_prediction_tokens": 3,
        "rejected_prediction_tokens": 5,
        "tokens_per_target_step": 3.0,
        "acceptance_by_position": [1.0] * 3 + [0.0] * 5,
    }
