"""The response that carries server-sent events. It knows no event's meaning."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.departure import ClientWatch
from server.api.direct_send import direct_send
from server.api.errors import ClientLeft

Piece = tuple[bytes, bool]
"""Encoded events, and whether there is more to come."""

# A proxy must neither keep the answer nor wait for more of it.
_HEAD = (
    (b"cache-control", b"no-store"),
    (b"connection", b"keep-alive"),
    (b"x-accel-buffering", b"no"),
    (b"content-type", b"text/event-stream; charset=utf-8"),
)


class EventStream(Response):
    """Calls `on_end` when the response is over in whatever way, even if its first event was never asked for.

    Nothing is sent on a timer, and whoever runs the server drains it.
    """

    def __init__(self, events: AsyncIterator[Piece], watch: ClientWatch, on_end: Callable[[], None]) -> None:
        """`watch` is closed at the end."""
        self.status_code = 200
        self.background = None
        self.raw_headers = list(_HEAD)
        self._events = events
        self._watch = watch
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # In a task of its own: every wake-up of this one would pass through all the layers that wait for it.
        telling = asyncio.create_task(self._tell(send, direct_send(scope, send)))
        try:
            await telling
        finally:
            self._watch.close()
            self._on_end()

    async def _tell(self, send: Send, send_event: Send) -> None:
        """Head and end pass through every layer, the events in between go straight to the server.

        A client that reads too slowly is waited for; meanwhile no events are made. One that leaves is not missed.
        """
        with contextlib.suppress(ClientLeft), self._watch:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for events, is_more in self._events:
                message = {"type": "http.response.body", "body": events, "more_body": is_more}
                await (send_event if is_more else send)(message)
