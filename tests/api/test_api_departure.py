"""Clients that leave: whatever they were waiting for is given up at once."""

import asyncio
import json

import pytest
from api_apps import make_app
from api_requests import Json
from fake_engine import FakeEngine
from starlette.types import Message, Scope

from server.api.departure import ClientWatch
from server.api.errors import ClientLeft

pytestmark = pytest.mark.anyio

PATHS: dict[str, Json] = {
    "/v1/completions": {"model": "tiny", "prompt": "Say:"},
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
}


class Client:
    """One raw ASGI exchange whose client stays until `left` is set, and takes what it is sent while `reads` is."""

    def __init__(self, engine: FakeEngine, path: str, body: Json) -> None:
        self.left = asyncio.Event()
        self.wrote = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.messages: list[Message] = []
        self._body: list[bytes] = [json.dumps(body).encode()]
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [],
        }
        self.exchange = asyncio.create_task(make_app(engine)(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.messages.append(message)
        if message.get("body"):
            self.wrote.set()
            await self.reads.wait()


async def until_opened(engine: FakeEngine) -> None:
    while not engine.opened:
        await asyncio.sleep(0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_before_the_first_token_is_noticed(path: str, streamed: bool) -> None:
    engine = FakeEngine(holds_after=0)
    client = Client(engine, path, {**PATHS[path], "stream": streamed})
    await asyncio.wait_for(until_opened(engine), 5)
    assert engine.opened[0].num_closes == 0
    client.left.set()
    await asyncio.wait_for(engine.opened[0].closed.wait(), 5)
    await asyncio.wait_for(client.exchange, 5)


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_leaves_a_silent_stream_is_noticed(path: str) -> None:
    engine = FakeEngine(holds_after=2)
    client = Client(engine, path, {**PATHS[path], "stream": True})
    await asyncio.wait_for(client.wrote.wait(), 5)
    assert engine.opened[0].num_closes == 0
    client.left.set()
    await asyncio.wait_for(engine.opened[0].closed.wait(), 5)
    await asyncio.wait_for(client.exchange, 5)
    assert not any(b"[DONE]" in message.get("body", b"") for message in client.messages)


async def test_a_client_that_leaves_between_first_token_and_response_is_noticed() -> None:
    engine = FakeEngine(holds_after=1)
    client = Client(engine, "/v1/completions", {**PATHS["/v1/completions"], "stream": True})
    client.left.set()
    await asyncio.wait_for(client.exchange, 5)
    assert all(generation.num_closes for generation in engine.opened)


async def test_a_request_whose_task_is_cancelled_closes_its_generation() -> None:
    engine = FakeEngine(holds_after=0)
    client = Client(engine, "/v1/completions", PATHS["/v1/completions"])
    await asyncio.wait_for(until_opened(engine), 5)
    client.exchange.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.exchange
    assert engine.opened[0].num_closes == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_stays_gets_everything_and_the_generation_is_closed(path: str, streamed: bool) -> None:
    engine = FakeEngine(holds_after=2)
    client = Client(engine, path, {**PATHS[path], "stream": streamed})
    engine.released.set()
    await asyncio.wait_for(client.exchange, 5)
    assert engine.opened[0].num_closes == 1
    assert client.messages[0]["status"] == 200
    assert not client.messages[-1].get("more_body", False)


async def test_a_client_that_reads_slowly_is_waited_for() -> None:
    engine = FakeEngine()
    client = Client(engine, "/v1/completions", {**PATHS["/v1/completions"], "stream": True})
    client.reads.clear()
    await asyncio.wait_for(client.wrote.wait(), 5)
    for _ in range(100):  # turns of the loop in which a stream that does not wait would have come to its end
        await asyncio.sleep(0)
    written = [message["body"] for message in client.messages if message.get("body")]
    assert len(written) == 1
    client.reads.set()
    await asyncio.wait_for(client.exchange, 5)
    assert client.messages[-1]["body"].endswith(b"data: [DONE]\n\n")


async def test_work_ends_where_the_clients_presence_cannot_be_told(caplog: pytest.LogCaptureFixture) -> None:
    async def receive() -> Message:
        raise RuntimeError("the connection's state is lost")

    with pytest.raises(ClientLeft), ClientWatch(receive):
        await asyncio.wait_for(asyncio.Event().wait(), 5)
    assert "the connection's state is lost" in caplog.text
