"""Uvicorn's HTTP protocol with a short way for the middle of a streamed body. Knows no endpoint and no event."""

import asyncio
from typing import cast

from starlette.types import Scope

from server.api.direct_send import offer_direct_body
from server.held_head import HoldingProtocol


class Outbox:
    """Connections with something to write, which all do in the event loop's next turn.

    A system call for each token as it comes would throw out of the processor's caches all that the next token needs.
    """

    def __init__(self) -> None:
        self._bodies: list[ChunkedBody] = []

    def add(self, body: "ChunkedBody") -> None:
        if not self._bodies:
            asyncio.get_running_loop().call_soon(self._flush)
        self._bodies.append(body)

    def _flush(self) -> None:
        """Callbacks keep their order: a task that is woken after its stream's last piece was written comes later."""
        bodies, self._bodies = self._bodies[::-1], []
        _flush_all(bodies)


class ChunkedBody:
    """A DirectBody: what uvicorn's `send` comes to for a piece of a body whose length the head did not give."""

    __slots__ = ("_outbox", "_pieces", "_transport", "is_open")

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self.is_open = True
        self._transport = transport
        self._outbox = outbox
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> bool:
        if not self.is_open:
            return False
        if not self._pieces:
            self._outbox.add(self)
        self._pieces.append(piece)
        return True

    def flush(self) -> None:
        """Pieces that came together are one chunk."""
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))


def _flush_all(bodies: list[ChunkedBody]) -> None:
    """From the last to the first, and all in this turn of the loop: it is told what a transport raises only then."""
    try:
        while bodies:
            bodies.pop().flush()
    finally:
        if bodies:
            _flush_all(bodies)


class StreamProtocol(HoldingProtocol):
    """Offers every request the direct way to its connection."""

    outbox: Outbox

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._body = ChunkedBody(self.transport, self.outbox)

    def connection_lost(self, exc: Exception | None) -> None:
        self._body.is_open = False
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._body.is_open = False
        super().pause_writing()

    def resume_writing(self) -> None:
        self._body.is_open = True
        super().resume_writing()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        offer_direct_body(cast(Scope, self.scope), self._body)


def stream_protocol() -> type[StreamProtocol]:
    """The protocol of all connections of one server. Uvicorn makes them, and gives them nothing of ours."""
    return type("StreamProtocol", (StreamProtocol,), {"outbox": Outbox()})
