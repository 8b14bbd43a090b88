"""One HTTP/1.1 connection as a load generator wants it: what the socket brings is looked at at once, in one plain call.

A stream reader between socket and events would cost a task switch for every token, on the processors that the measured
server runs on. Knows HTTP's framing, no events and no JSON.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

Clock = Callable[[], float]
CLOSED = "the server closed the connection"


class ProtocolError(Exception):
    """What came is not HTTP/1.1."""


@dataclass(frozen=True)
class Head:
    """What a response begins with; names of headers are in lower case."""

    status: int
    headers: dict[str, str]


class Answer(Protocol):
    """Who reads a response. What its methods raise ends the exchange; where they say False, the connection is left."""

    def begin(self, head: Head) -> bool:
        """Take the head; called once."""

    def take(self, data: bytes, now: float) -> bool:
        """Take a piece of the body, cut anywhere, that arrived at `now`."""


class Connection(asyncio.Protocol):
    """Carries one exchange after another; `is_free` tells whether another may follow."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._parts: list[bytes] = []
        # The parser finds this method by its name. There is one part for every chunk, so it does no more than this.
        self.on_body = self._parts.append
        self._parser = httptools.HttpResponseParser(self)
        # What other clients forgive, too; some small servers end the lines of the head in LF alone.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._answer: Answer | None = None
        self._over: asyncio.Future[None] | None = None
        self._headers: dict[str, str] = {}
        self._head: Head | None = None
        self._begun = self._is_whole = False
        self._may_stay = True

    @property
    def is_free(self) -> bool:
        """Whether it is open and the last response was whole and let it stay open."""
        return self._answer is None and self._may_stay and not self._closed.done()

    async def exchange(self, request: bytes, answer: Answer) -> None:
        """Send `request`; done when `answer` has everything, or wants no more.

        Raises what `answer` raised, ProtocolError, or OSError where the connection broke.
        """
        assert self._transport is not None
        if self._closed.done():
            raise ConnectionError(CLOSED)
        self._headers, self._head = {}, None
        # It may stay once the response's end is seen.
        self._begun = self._is_whole = self._may_stay = False
        self._answer, self._over = answer, asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._over

    async def close(self) -> None:
        """Drop it, whatever is under way."""
        self.drop()
        await self._closed

    def drop(self) -> None:
        """As `close`, without waiting for the system to have done it."""
        self._answer, self._may_stay = None, False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop, with all that the socket held."""
        now = self._clock()
        problem: Exception | None = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as broken:
            problem = ProtocolError(f"not HTTP/1.1: {broken}")
        if self._answer is None:
            self.drop()  # it was left, or never asked
        elif self._parts or not self._begun:
            self._pass_on(self._answer, now)
        if self._is_whole:
            self._may_stay = self._may_stay and problem is None
            self._settle(None)
        elif problem is not None:
            self._settle(problem)

    def connection_lost(self, problem: Exception | None) -> None:
        """Called by the event loop, once."""
        self._closed.set_result(None)
        if self._begun and not self._has_framing:
            self._settle(problem)  # a body without framing ends with its connection
        else:
            self._settle(problem or ConnectionError(CLOSED))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser for every header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        status = self._parser.get_status_code()
        if status < 200:
            self._headers = {}  # of an interim response; the real one follows
        else:
            self._head = Head(status, self._headers)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._head is not None:
            self._is_whole = True
            self._may_stay = self._parser.should_keep_alive()

    @property
    def _has_framing(self) -> bool:
        return "content-length" in self._headers or "chunked" in self._headers.get("transfer-encoding", "").lower()

    def _pass_on(self, answer: Answer, now: float) -> None:
        """Give `answer` what the parser found."""
        parts, wants_more = self._parts, True
        try:
            if not self._begun and self._head is not None:
                self._begun = True
                wants_more = answer.begin(self._head)
            if parts and wants_more:
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                parts.clear()
                wants_more = answer.take(data, now)
        except Exception as problem:  # whatever it is, it belongs to who asked and not to the event loop
            self._settle(problem)
            return
        if not wants_more:
            self._settle(None)

    def _settle(self, problem: Exception | None) -> None:
        """End the exchange, if one is under way."""
        self._answer = None
        self._parts.clear()
        if self._over is None or self._over.done():
            return
        if problem is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(problem)
