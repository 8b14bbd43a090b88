"""A small OpenAI-compatible server on loopback whose every answer a test can shape. It runs in a thread of its own."""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web


@dataclass(frozen=True)
class Behaviour:
    """How one request is answered."""

    status: int = 200
    content_type: str = "text/event-stream"
    ending: Literal["whole", "no_done", "no_finish", "error_event", "garbage", "drop", "hang"] = "whole"
    tokens_per_chunk: int = 1
    max_tokens: int | None = None
    """Stops here, whatever was asked for."""
    usage: bool = True
    continuous_usage: bool = False
    newline: str = "\n"
    write_bytes: int | None = None
    delay_seconds: float = 0.0
    stall_seconds: float = 0.0
    """Held while nobody else is served, as by a server that stops for a moment."""


class FakeOpenAI:
    """Start it with `start`, shape it with `behave(number, body)`, look at `bodies` and `peak` afterwards."""

    def __init__(self) -> None:
        self.behave: Callable[[int, dict[str, Any]], Behaviour] = lambda number, body: Behaviour()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.ports: list[int] = []
        """Of the client, by request: equal ones are the same connection."""
        self.in_flight = self.peak = 0
        self.url = ""
        self.context_length: int | None = None
        """What it tells of its model; None tells nothing."""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._stopping, self._free = asyncio.Event(), asyncio.Lock()
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._stopping.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        tiny = {"id": "tiny", "object": "model"}
        if self.context_length is not None:
            tiny["max_model_len"] = self.context_length
        return web.json_response({"object": "list", "data": [tiny]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        assert request.transport is not None
        self.ports.append(request.transport.get_extra_info("peername")[1])
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            return await self._stream(request, body, self.behave(number, body))
        finally:
            self.in_flight -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any], shape: Behaviour) -> web.StreamResponse:
        async with self._free:
            await asyncio.sleep(shape.stall_seconds)
        if shape.status != 200 or shape.content_type != "text/event-stream":
            error = {"error": {"message": "no", "type": "x"}}
            return web.json_response(error, status=shape.status, content_type=shape.content_type)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for payload in payloads(body, shape):
            await asyncio.sleep(shape.delay_seconds)
            await self._write(response, payload, shape)
        if shape.ending == "drop":
            assert request.transport is not None
            request.transport.abort()
        if shape.ending == "hang":
            await asyncio.Event().wait()
        return response

    async def _write(self, response: web.StreamResponse, payload: str, shape: Behaviour) -> None:
        data = f": comment{shape.newline}data: {payload}{shape.newline * 2}".encode()
        step = shape.write_bytes or len(data)
        for start in range(0, len(data), step):
            await response.write(data[start : start + step])


def payloads(body: dict[str, Any], shape: Behaviour) -> list[str]:
    """The data of all events of one answer, `max_tokens` tokens long."""
    num_tokens, is_chat = shape.max_tokens or body["max_tokens"], "messages" in body
    events: list[dict[str, Any]] = []
    if is_chat:
        events.append({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    num_sent = 0
    while num_sent < num_tokens:
        num_new = min(shape.tokens_per_chunk, num_tokens - num_sent)
        num_sent += num_new
        text = "wé " * num_new
        choice: dict[str, Any] = {"index": 0, **({"delta": {"content": text}} if is_chat else {"text": text})}
        event: dict[str, Any] = {"choices": [choice]}
        if shape.continuous_usage:
            event["usage"] = usage(num_sent)
        events.append(event)
    if shape.ending in ("whole", "no_done"):
        final = {"delta": {}} if is_chat else {"text": ""}
        events.append({"choices": [{"index": 0, "finish_reason": "length", **final}]})
        if shape.usage:
            events.append({"choices": [], "usage": usage(num_tokens)})
    if shape.ending == "error_event":
        events.append({"error": {"message": "engine gone", "code": 500}})
    lines = [json.dumps(event) for event in events]
    return lines + {"whole": ["[DONE]"], "garbage": ['{"choices": 5}']}.get(shape.ending, [])


def usage(num_tokens: int) -> dict[str, Any]:
    """A usage block with ten prompt tokens, four of them cached."""
    return {"prompt_tokens": 10, "completion_tokens": num_tokens, "prompt_tokens_details": {"cached_tokens": 4}}
