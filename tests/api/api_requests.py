"""Short ways to ask, and to read event streams."""

import json
from typing import Any, cast

import httpx

Json = dict[str, Any]  # answers are looked into as deep as a test likes


async def complete(client: httpx.AsyncClient, **fields: object) -> Json:
    """The JSON of a completion that must succeed."""
    return await ask(client, "/v1/completions", {"model": "tiny", "prompt": "Say:", **fields})


async def chat(client: httpx.AsyncClient, **fields: object) -> Json:
    messages = [{"role": "user", "content": "hi"}]
    return await ask(client, "/v1/chat/completions", {"model": "tiny", "messages": messages, **fields})


async def ask(client: httpx.AsyncClient, path: str, body: Json) -> Json:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return cast(Json, answer.json())


async def refused(client: httpx.AsyncClient, path: str, body: Json, status: int = 400) -> Json:
    """The error object of a request that must be refused with `status`."""
    return error_of(await client.post(path, json=body), status)


def error_of(answer: httpx.Response, status: int = 400) -> Json:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return cast(Json, error)


async def stream(client: httpx.AsyncClient, path: str, body: Json) -> list[Json]:
    """The events of a stream that must be whole: every one JSON, then [DONE]."""
    answer = await client.post(path, json={"model": "tiny", "stream": True, **body})
    assert answer.status_code == 200, answer.text
    events = events_of(answer.text)
    assert events.pop() == "[DONE]"
    return [cast(Json, json.loads(event)) for event in events]


def events_of(text: str) -> list[str]:
    """The data of each event; everything else about the format is asserted."""
    assert text.endswith("\n\n")
    blocks = text[:-2].split("\n\n")
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def choice_of(answer: Json, index: int = 0) -> Json:
    choices = cast(list[Json], answer["choices"])
    return next(choice for choice in choices if choice["index"] == index)
