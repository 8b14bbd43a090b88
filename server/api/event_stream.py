"""The response that carries server-sent events. It knows no event's meaning."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from server.api.departure import WhileClientStays
from server.api.direct_send import direct_send
from server.api.errors import ClientLeft


class EventStream(EventSourceResponse):
    """Calls `on_end` when the response is over in whatever way, even if its first event was never asked for.

    The library gives the head. Its way with each event (a timeout's scope, a copy, a log line, and `send` through every
    middleware) cost more than all the rest of a token, and its group of tasks a quarter of a request; here events come
    encoded, nothing is sent on a timer, and whoever runs the server drains it.
    """

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, sep="\n", ping=0)  # no comment lines: only events
        self._events = events
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # In a task of its own: every wake-up of this one would pass through all the layers that wait for it.
        telling = asyncio.create_task(self._tell(receive, send, direct_send(scope, send)))
        try:
            await telling
        finally:
            self._on_end()

    async def _tell(self, receive: Receive, send: Send, send_event: Send) -> None:
        """Head and end pass through every layer, the events in between go straight to the server.

        A client that reads too slowly is waited for; meanwhile no events are made. One that leaves is not missed.
        """
        with contextlib.suppress(ClientLeft):
            async with WhileClientStays(receive):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for events in self._events:
                    await send_event({"type": "http.response.body", "body": events, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
