"""Bounds on all request bodies together: how long one may take to arrive, and how many bytes wait in memory.

It knows no endpoint and no schema; what one body may hold is `body`'s matter.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BadRequest, QueueFull


class BodyBounds:
    """ASGI middleware around whatever reads bodies.

    Reading raises BadRequest (408) when a body is not whole after `read_seconds`, and QueueFull when the bodies being
    read hold more than `max_bytes`. Bytes are counted as they come, so that slow clients take no room from others.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, read_seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._read_seconds = read_seconds
        self._num_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        num_held = 0  # of this request's body
        is_whole = False
        deadline: float | None = None

        async def receive_in_bounds() -> Message:
            nonlocal num_held, is_whole, deadline
            if is_whole:  # what comes now is the client's departure, which may take its time
                return await receive()
            if deadline is None:
                deadline = asyncio.get_running_loop().time() + self._read_seconds
            message = await self._next_piece(receive, deadline)
            size = len(message.get("body", b""))
            num_held += size
            self._num_bytes += size
            is_whole = not message.get("more_body", False)
            if self._num_bytes > self._max_bytes:
                raise QueueFull(1, f"request bodies of more than {self._max_bytes} bytes are being read")
            if is_whole:  # the reader parses it before it waits for anything again
                self._num_bytes, num_held = self._num_bytes - num_held, 0
            return message

        try:
            await self._app(scope, receive_in_bounds, send)
        finally:
            self._num_bytes -= num_held

    async def _next_piece(self, receive: Receive, deadline: float) -> Message:
        try:
            async with asyncio.timeout_at(deadline):
                return await receive()
        except TimeoutError:
            message = f"The body was not whole after {self._read_seconds:g} seconds, the limit."
            raise BadRequest(message, None, "request_timeout", 408) from None
