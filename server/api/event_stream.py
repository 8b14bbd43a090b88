"""The response that carries server-sent events. It knows no event's meaning."""

from collections.abc import AsyncIterator, Callable

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from server.api.direct_send import direct_send


class EventStream(EventSourceResponse):
    """Calls `on_end` when the response is over in whatever way, even if its first event was never asked for.

    The library's headers, and its watch for clients that leave. What it does for each event (a timeout's scope, a copy,
    a log line, every middleware's `send`) cost more than all the rest of a token, and is left out: events come encoded.
    """

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, sep="\n", ping=0)  # no comment lines: only events
        self._events = events
        self._on_end = on_end
        self._scope: Scope = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()

    async def _stream_response(self, send: Send) -> None:
        """Head and end through every layer, the events in between straight to the server.

        It waits when the client reads too slowly; meanwhile no events are made.
        """
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        send_event = direct_send(self._scope, send)
        async for events in self._events:
            await send_event({"type": "http.response.body", "body": events, "more_body": True})
        self.active = False
        await send({"type": "http.response.body", "body": b"", "more_body": False})
