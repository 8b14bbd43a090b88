"""The response that carries server-sent events. It knows no event's meaning."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from sse_starlette import EventSourceResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.departure import ClientWatch
from server.api.direct_send import direct_send
from server.api.errors import ClientLeft

Piece = tuple[bytes, bool]
"""Encoded events, and whether there is more to come."""

# The library says what keeps proxies from holding events back. Its way with each event (a timeout's scope, a copy, a
# log line, and `send` through every layer) cost more than all the rest of a token.
_HEADERS = EventSourceResponse(iter(())).raw_headers


class EventStream(Response):
    """Calls `on_end` when the response is over in whatever way.

    `begin` waits until there is something to show: what it raises can still be answered as an ordinary error. By then
    everything else is there, as the time from the first token to the client is what it waits for.

    Events come encoded, nothing is sent on a timer, and whoever runs the server drains it. A client that reads too
    slowly is waited for; meanwhile no events are made.
    """

    def __init__(self, begin: Callable[[], Awaitable[AsyncIterator[Piece]]], on_end: Callable[[], None]) -> None:
        # The base class would render a body and work out the headers.
        self.status_code = 200
        self.raw_headers = list(_HEADERS)
        self.background = None
        self._begin = begin
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what `begin` raises, and ClientLeft if the client leaves first. A later one is not missed."""
        # In a task of its own: every wake-up of this one would pass through all the layers that wait for it.
        telling = asyncio.create_task(self._tell(receive, send, direct_send(scope, send)))
        try:
            await telling
        finally:
            self._on_end()

    async def _tell(self, receive: Receive, send: Send, send_event: Send) -> None:
        """Head and end pass through every layer, the events in between go straight to the server."""
        watch = ClientWatch(receive)
        has_begun = False
        try:
            with watch:
                stream = await self._begin()
                has_begun = True
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for events, is_more in stream:
                    message = {"type": "http.response.body", "body": events, "more_body": is_more}
                    await (send_event if is_more else send)(message)
        except ClientLeft:
            if not has_begun:
                raise
        finally:
            watch.close()
