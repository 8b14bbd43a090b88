"""Event streams: what they say equals the whole answer, and how they end."""

import json

import httpx
import pytest
from api_apps import client_of, make_app
from api_requests import Json, chat, choice_of, complete, error_of, events_of, stream
from fake_engine import FakeEngine, Reply, Script, recite
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from server.engine.types import SequenceOutput, SequenceRequest
from server.errors import Draining, EngineFailed, EngineUnavailable, QueueFull, ServerError

pytestmark = pytest.mark.anyio

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HI: Json = {"messages": [{"role": "user", "content": "hi"}]}


def joined_completion(events: list[Json], index: int) -> Json:
    """The choice that a completion stream's events add up to."""
    whole: Json = {"text": ""}
    for choice in (choice for event in events for choice in event["choices"] if choice["index"] == index):
        text, logprobs, tokens = choice.pop("text"), choice.pop("logprobs"), choice.pop("token_ids", None)
        whole["text"] += text
        for name, values in (logprobs or {}).items():
            whole.setdefault("logprobs", {}).setdefault(name, []).extend(values)
        if tokens is not None:
            whole.setdefault("token_ids", []).extend(tokens)
        whole.update(choice)
    return whole


def joined_chat(events: list[Json], index: int) -> Json:
    whole: Json = {"message": {"content": ""}, "logprobs": None}
    for choice in (choice for event in events for choice in event["choices"] if choice["index"] == index):
        delta, logprobs = choice.pop("delta"), choice.pop("logprobs")
        whole["message"]["content"] += delta.pop("content", "")
        whole["message"].update(delta)
        if logprobs:
            whole["logprobs"] = whole["logprobs"] or {"content": [], "refusal": None}
            whole["logprobs"]["content"] += logprobs["content"]
        whole.update(choice)
    whole["message"]["refusal"] = None
    return whole


VARIANTS: list[Json] = [
    {},
    {"stop": ["wor"]},
    {"stop": ["never"], "max_tokens": 5},
    {"n": 3},
    {"prompt_logprobs": 1, "return_token_ids": True},
]


@pytest.mark.parametrize("fields", [*VARIANTS, {"echo": True, "logprobs": 1}, {"logprobs": 0, "stop": ["lo, w"]}])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("steps_at_once", [1, 3])
async def test_a_completion_stream_adds_up_to_the_whole_answer(fields: Json, group: int, steps_at_once: int) -> None:
    engine = FakeEngine(reply=recite("Hello, wörld".encode(), group), steps_at_once=steps_at_once)
    body: Json = {"prompt": "Say é", "seed": 4, **fields}
    async with client_of(make_app(engine)) as client:
        whole = await complete(client, **body)
        events = await stream(client, COMPLETIONS, body)
    for choice in whole["choices"]:
        streamed = joined_completion(events, choice["index"])
        streamed.setdefault("logprobs", None)
        assert streamed == choice


@pytest.mark.parametrize("fields", [*VARIANTS, {"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "n": 2}])
@pytest.mark.parametrize("group", [1, 4])
async def test_a_chat_stream_adds_up_to_the_whole_answer(fields: Json, group: int) -> None:
    engine = FakeEngine(reply=recite("Hello, wörld".encode(), group))
    fields = {key: value for key, value in fields.items() if key != "return_token_ids"}
    async with client_of(make_app(engine)) as client:
        whole = await chat(client, seed=4, **fields)
        events = await stream(client, CHAT, {**HI, "seed": 4, **fields})
    for choice in whole["choices"]:
        assert joined_chat(events, choice["index"]) == choice


@given(
    st.text("ab é\U0001f600", max_size=12),
    st.lists(st.text("ab é", min_size=1, max_size=3), max_size=3),
    st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
async def test_any_text_with_any_stop_strings_streams_as_it_answers(text: str, stops: list[str], group: int) -> None:
    engine = FakeEngine(reply=recite(text.encode(), group))
    async with client_of(make_app(engine)) as client:
        whole = await complete(client, stop=stops, seed=1, logprobs=0, max_tokens=40)
        events = await stream(
            client, COMPLETIONS, {"prompt": "Say:", "stop": stops, "seed": 1, "logprobs": 0, "max_tokens": 40}
        )
    streamed = joined_completion(events, 0)
    streamed.setdefault("logprobs", {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []})
    assert streamed == choice_of(whole)


async def test_chat_streams_begin_each_choice_with_its_role(client: httpx.AsyncClient) -> None:
    events = await stream(client, CHAT, {**HI, "n": 2})
    for index in range(2):
        deltas = [choice["delta"] for event in events for choice in event["choices"] if choice["index"] == index]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert all("role" not in delta for delta in deltas[1:])
        assert deltas[-1] == {}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1


async def test_usage_comes_last_without_choices_when_asked_for(client: httpx.AsyncClient) -> None:
    options = {"stream_options": {"include_usage": True}}
    *events, last = await stream(client, CHAT, {**HI, **options})
    assert all(event["usage"] is None and event["choices"] for event in events)
    assert last["choices"] == []
    assert last["usage"] == (await chat(client))["usage"]


async def test_without_options_there_is_no_usage(client: httpx.AsyncClient) -> None:
    assert all("usage" not in event for event in await stream(client, CHAT, HI))


async def test_continuous_usage_counts_up_to_the_final_usage(client: httpx.AsyncClient) -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    events = await stream(client, COMPLETIONS, {"prompt": "Say:", **options})
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == [*range(1, 14), 13]
    assert events[-1]["usage"] == (await complete(client))["usage"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_events_from_a_template_are_those_encoded_one_by_one(path: str) -> None:
    engine = FakeEngine(reply=recite('"é\\\n\0", she said'.encode()))
    body: Json = {"prompt": "Say:"} if path == COMPLETIONS else dict(HI)
    body |= {"n": 2, "seed": 3}
    async with client_of(make_app(engine)) as client:
        quick = await stream(client, path, body)
        # The usage so far differs from event to event, so there is no template for these.
        slow = await stream(client, path, {**body, "stream_options": {"continuous_usage_stats": True}})
    for event in [*quick, *slow]:
        event.pop("usage", None)
        event.pop("id")
    assert quick == slow


async def test_a_step_is_one_event_for_each_choice_and_one_write(engine: FakeEngine) -> None:
    engine.reply = recite(b"abcdef", group=2, then=None)
    writes: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if message.get("body"):
                writes.append(message["body"].decode())
            await send(message)

        await make_app(engine)(scope, receive, watched)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tiny") as client:
        await stream(client, COMPLETIONS, {"prompt": ["x", "y"], "stream_options": {"include_usage": True}})
    events = [[json.loads(event) for event in events_of(write) if event != "[DONE]"] for write in writes]
    assert [[choice["index"] for event in step for choice in event["choices"]] for step in events] == [[0, 1]] * 3
    assert [choice["text"] for step in events for choice in step[0]["choices"]] == ["ab", "cd", "ef"]
    assert writes[-1].endswith("data: [DONE]\n\n")


async def test_the_stream_has_the_headers_proxies_need(client: httpx.AsyncClient) -> None:
    answer = await client.post(COMPLETIONS, json={"model": "tiny", "prompt": "Say:", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"


def broken(after: bytes) -> Reply:
    """Says `after`, then reports numbers that are not finite."""

    def reply(request: SequenceRequest) -> Script:
        failure = SequenceOutput(0, finish_reason="error", error="The numbers are not finite.")
        return [*(SequenceOutput(0, (byte,)) for byte in after), failure]

    return reply


REFUSALS: list[tuple[ServerError, int, str, str | None]] = [
    (QueueFull(17), 503, "queue_full", "17"),
    (EngineUnavailable("loading"), 503, "engine_unavailable", "5"),
    (Draining(), 503, "draining", "5"),
    (EngineFailed("died"), 500, "engine_error", None),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("refusal", "status", "code", "retry_after"), REFUSALS)
async def test_the_engines_refusals_are_http_errors(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    streamed: bool,
    refusal: ServerError,
    status: int,
    code: str,
    retry_after: str | None,
) -> None:
    engine.refusal = refusal
    answer = await client.post(COMPLETIONS, json={"model": "tiny", "prompt": "Say:", "stream": streamed})
    error = error_of(answer, status)
    assert (error["type"], error["code"]) == ("server_error", code)
    assert answer.headers.get("retry-after") == retry_after


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_an_engine_that_dies_before_the_first_token_is_a_500(
    client: httpx.AsyncClient, engine: FakeEngine, streamed: bool, path: str
) -> None:
    engine.fails_after = 0
    prompt: Json = {"prompt": "Say:"} if path == COMPLETIONS else HI
    answer = await client.post(path, json={"model": "tiny", **prompt, "stream": streamed})
    assert error_of(answer, 500)["code"] == "engine_error"
    assert engine.opened[0].num_closes == 1


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_an_engine_that_dies_later_is_an_event_and_no_done(
    client: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    engine.fails_after = 3
    prompt: Json = {"prompt": "Say:"} if path == COMPLETIONS else HI
    answer = await client.post(path, json={"model": "tiny", **prompt, "stream": True})
    assert answer.status_code == 200
    events = [json.loads(event) for event in events_of(answer.text)]
    assert events[-1]["error"] == {
        "message": "the engine died",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }
    text = "".join(
        choice.get("text") or choice["delta"]["content"] for event in events[:-1] for choice in event["choices"]
    )
    assert text == "Hel"
    assert engine.opened[0].num_closes == 1


async def test_numbers_that_are_not_finite_are_a_500_or_an_event() -> None:
    body: Json = {"model": "tiny", "prompt": "Say:"}
    async with client_of(make_app(FakeEngine(reply=broken(b"ab")))) as client:
        assert "not finite" in error_of(await client.post(COMPLETIONS, json=body), 500)["message"]
        answer = await client.post(COMPLETIONS, json={**body, "stream": True})
        assert "not finite" in json.loads(events_of(answer.text)[-1])["error"]["message"]
    async with client_of(make_app(FakeEngine(reply=broken(b"")))) as client:
        error_of(await client.post(COMPLETIONS, json={**body, "stream": True}), 500)


async def test_an_engine_that_ends_without_finishing_is_an_error(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.reply = lambda request: [SequenceOutput(0, (97,))]
    answer = await client.post(COMPLETIONS, json={"model": "tiny", "prompt": "Say:"})
    assert error_of(answer, 500)["code"] == "engine_error"
