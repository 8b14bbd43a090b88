"""The unmodified OpenAI client against the application behind a real server on loopback."""

import asyncio
import json
import socket
from collections.abc import Iterator

import openai
import pytest
from api_apps import make_app
from fake_engine import FakeEngine, recite
from live_server import LiveServer, serving
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from server.api.settings import ApiSettings
from server.errors import EngineUnavailable, QueueFull

KEY = "sk-tiny"
HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def shared_engine() -> FakeEngine:
    return FakeEngine(reply=recite("Hello, wörld".encode()))


@pytest.fixture(scope="module")
def shared_server(shared_engine: FakeEngine) -> Iterator[LiveServer]:
    with serving(make_app(shared_engine, settings=ApiSettings(api_keys=(KEY,)))) as server:
        yield server


@pytest.fixture
def server(shared_server: LiveServer, shared_engine: FakeEngine) -> Iterator[LiveServer]:
    """The shared server with an engine that behaves; what a test changes about it is undone."""
    yield shared_server
    shared_engine.refusal, shared_engine.fails_after, shared_engine.holds_after = None, None, 10**9
    shared_engine.released = asyncio.Event()


@pytest.fixture
def client(server: LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


def test_completions_answer(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=["Say:", "And:"], n=2, echo=True, logprobs=2, seed=1, extra_body={"top_k": 5}
    )
    assert [choice.text for choice in answer.choices] == [*["Say:Hello, wörld"] * 2, *["And:Hello, wörld"] * 2]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert logprobs.text_offset == [*range(12), 12, 12, *range(13, 16)]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8 + 4 * 14


def test_completion_streams_add_up(client: OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="Say:")
    events = list(
        client.completions.create(model="tiny", prompt="Say:", stream=True, stream_options={"include_usage": True})
    )
    assert "".join(event.choices[0].text for event in events[:-1]) == whole.choices[0].text == "Hello, wörld"
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert events[-1].usage == whole.usage


def test_chat_answers_and_its_message_can_be_sent_back(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=3, temperature=0)
    choice = answer.choices[0]
    assert choice.message.content == "Hello, wörld"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    data = bytes(byte for token in choice.logprobs.content for byte in token.bytes or [])
    assert data.decode() == choice.message.content
    assert [len(token.top_logprobs) for token in choice.logprobs.content] == [3] * len(data)
    again = client.chat.completions.create(model="tiny", messages=[*HI, choice.message.to_dict(), *HI])  # type: ignore[list-item]
    assert again.usage is not None
    assert answer.usage is not None
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens


def test_the_clients_own_stream_accumulator_agrees_with_the_whole_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=HI, n=2, logprobs=True, seed=3)
    with client.chat.completions.stream(model="tiny", messages=HI, n=2, logprobs=True, seed=3) as stream:
        streamed = stream.get_final_completion()
    for mine, theirs in zip(streamed.choices, whole.choices, strict=True):
        assert mine.message.content == theirs.message.content
        assert mine.finish_reason == theirs.finish_reason
        assert mine.logprobs is not None
        assert theirs.logprobs is not None
        assert mine.logprobs.content == theirs.logprobs.content


def test_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_mistakes_are_the_clients_own_exceptions(client: OpenAI, server: LiveServer) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=HI, temperature=11)
    assert bad.value.param == "temperature"
    assert "between 0.0 and 10.0" in bad.value.message
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="huge", messages=HI)
    assert missing.value.code == "model_not_found"
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as denied,
    ):
        stranger.models.list()
    assert denied.value.code == "invalid_api_key"


def test_a_full_queue_and_a_missing_engine_are_errors_to_retry(client: OpenAI, shared_engine: FakeEngine) -> None:
    for refusal, seconds in ((QueueFull(3), "3"), (EngineUnavailable("restarting"), "5")):
        shared_engine.refusal = refusal
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="tiny", prompt="Say:")
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == seconds


@pytest.mark.parametrize("streamed", [False, True])
def test_an_engine_that_dies_is_an_error_in_both_modes(
    client: OpenAI, shared_engine: FakeEngine, streamed: bool
) -> None:
    shared_engine.fails_after = 2
    if not streamed:
        with pytest.raises(openai.InternalServerError):
            client.completions.create(model="tiny", prompt="Say:")
        return
    events = client.completions.create(model="tiny", prompt="Say:", stream=True)
    texts: list[str] = []
    with pytest.raises(openai.APIError, match="the engine died"):
        texts.extend(event.choices[0].text for event in events)
    assert texts == ["H", "e"]


def test_leaving_a_silent_stream_closes_its_generation(
    client: OpenAI, server: LiveServer, shared_engine: FakeEngine
) -> None:
    shared_engine.holds_after = 2
    events = client.completions.create(model="tiny", prompt="Say:", stream=True)
    assert [next(events).choices[0].text for _ in range(2)] == ["H", "e"]
    generation = shared_engine.opened[-1]
    assert not generation.closed.is_set()
    events.close()
    server.wait_for(generation.closed)


def test_leaving_while_waiting_for_a_whole_answer_closes_its_generation(
    server: LiveServer, shared_engine: FakeEngine
) -> None:
    shared_engine.holds_after = 0
    num_before = len(shared_engine.opened)
    body = json.dumps({"model": "tiny", "prompt": "Say:"}).encode()
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        server.wait_until(lambda: len(shared_engine.opened) > num_before)
        assert not shared_engine.opened[-1].closed.is_set()
    server.wait_for(shared_engine.opened[-1].closed)


def test_a_server_that_is_told_to_stop_lets_streams_finish() -> None:
    engine = FakeEngine(holds_after=2)
    with serving(make_app(engine)) as server, OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        events = client.completions.create(model="tiny", prompt="Say:", stream=True)
        texts = [next(events).choices[0].text]
        server.terminate()
        # Longer than whatever looks from time to time whether the server is stopping. This stream is not cut.
        with pytest.raises(TimeoutError):
            server.run(asyncio.wait_for(engine.opened[0].closed.wait(), 0.8))
        server.call(engine.released.set)
        texts += [event.choices[0].text for event in events]
        assert "".join(texts) == "Hello, world"
    assert engine.opened[0].num_closes == 1
