"""POST /v1/chat/completions, whole answers."""

import httpx
import pytest
from api_apps import NOW, client_of, make_app, with_template
from api_requests import Json, chat, choice_of, refused
from fake_engine import EOS, FakeEngine, recite

from server.api.accepted import CHAT_UNSUPPORTED, HARMLESS
from server.api.schemas_chat import ChatRequest

pytestmark = pytest.mark.anyio


def prompt_text(engine: FakeEngine) -> str:
    return bytes(engine.requests[-1][0].prompt).decode()


async def test_an_answer_has_openais_fields(client: httpx.AsyncClient) -> None:
    answer = await chat(client, seed=3)
    assert str(answer.pop("id")).startswith("chatcmpl-")
    answer.pop("system_fingerprint")
    assert answer == {
        "object": "chat.completion",
        "created": NOW,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello, world", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": EOS,
                "seed": 3,
            }
        ],
        "usage": {
            "prompt_tokens": len("user: hi\nassistant: "),
            "completion_tokens": 13,
            "total_tokens": 33,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_max_tokens_defaults_to_the_rest_of_the_context(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await chat(client)
    assert engine.requests[0][0].params.max_tokens == 512 - len("user: hi\nassistant: ")
    await chat(client, max_completion_tokens=4, max_tokens=4)
    assert engine.requests[1][0].params.max_tokens == 4


async def test_nulls_and_neutral_values_ask_for_nothing(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    names = {*ChatRequest.model_fields, *CHAT_UNSUPPORTED, *HARMLESS} - {"model", "messages", "seed"}
    neutral = {name: rule.neutral[0] for name, rule in CHAT_UNSUPPORTED.items() if rule.neutral}
    for fields in ({}, dict.fromkeys(names), neutral):
        await chat(client, seed=0, **fields)
    assert engine.requests[0] == engine.requests[1] == engine.requests[2]


async def test_without_a_template_messages_become_plain_lines(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "three"},
        {"role": "user", "name": "ann", "content": "{{ 7 * 7 }}"},
    ]
    await chat(client, messages=messages)
    plain = "system: be brief\nuser: one\ntwo\nassistant: three\nuser: {{ 7 * 7 }}\n"
    assert prompt_text(engine) == plain + "assistant: "
    await chat(client, messages=messages, add_generation_prompt=False)
    assert prompt_text(engine) == plain


async def test_an_answers_message_can_be_sent_back(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    message = choice_of(await chat(client))["message"]
    padding: Json = {"tool_calls": None, "function_call": None, "audio": None, "annotations": []}
    await chat(client, messages=[{"role": "user", "content": "hi"}, {**message, **padding}])
    assert prompt_text(engine) == "user: hi\nassistant: Hello, world\nassistant: "


async def test_logprobs_have_openais_chat_shape(client: httpx.AsyncClient) -> None:
    logprobs = choice_of(await chat(client, logprobs=True, top_logprobs=1, max_tokens=1))["logprobs"]
    top = {"token": "\0", "logprob": -0.01, "bytes": [0]}
    assert logprobs == {
        "content": [{"token": "H", "logprob": -0.73, "bytes": [72], "top_logprobs": [top]}],
        "refusal": None,
    }
    logprobs = choice_of(await chat(client, logprobs=True, max_tokens=1))["logprobs"]
    assert logprobs["content"][0]["top_logprobs"] == []


async def test_bytes_put_split_characters_together_again() -> None:
    async with client_of(make_app(FakeEngine(reply=recite("é!".encode())))) as client:
        choice = choice_of(await chat(client, logprobs=True))
    content = choice["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == choice["message"]["content"] == "é!"


async def test_the_checkpoints_template_is_used_with_the_clients_own_values(engine: FakeEngine) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if think %}?{% endif %}"
    async with client_of(make_app(engine, with_template(template))) as client:
        await chat(client, chat_template_kwargs={"think": True})
        assert prompt_text(engine) == "<user>hi?"
        await chat(client)
        assert prompt_text(engine) == "<user>hi"


async def test_a_template_that_refuses_is_a_400_with_its_words(engine: FakeEngine) -> None:
    model = with_template("{{ raise_exception('no ' ~ messages[0].role ~ ' first') }}")
    async with client_of(make_app(engine, model)) as client:
        body = {"model": "tiny", "messages": [{"role": "system", "content": "hi"}]}
        error = await refused(client, "/v1/chat/completions", body)
    assert (error["code"], error["param"]) == ("chat_template_error", "messages")
    assert "no system first" in error["message"]


async def test_a_template_that_makes_nothing_is_a_400(engine: FakeEngine) -> None:
    async with client_of(make_app(engine, with_template("{# nothing #}"))) as client:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        assert "empty prompt" in (await refused(client, "/v1/chat/completions", body))["message"]
