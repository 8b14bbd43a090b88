"""The HTTP process's end of the socket to the engine: bytes to messages and back on the event loop. Nothing more."""

import asyncio
import logging
from collections.abc import Callable
from typing import cast

import msgspec

from server.errors import FrameTooLarge
from server.framing import FrameReader
from server.logs import Event
from server.protocol import FromEngine, ToEngine, decode_from_engine, encode

logger = logging.getLogger(__name__)


class EngineConnection(asyncio.Protocol):
    """Calls `receive` for every message; `lost` is done once the connection has ended, from whichever side."""

    def __init__(self, receive: Callable[[FromEngine], None]) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receive = receive
        self._reader = FrameReader()
        self._transport: asyncio.WriteTransport | None = None

    def send(self, message: ToEngine) -> None:
        """Queue a message. The transport's buffer is bounded by the admission limits on what can be asked."""
        if self._transport is not None:
            self._transport.write(encode(message))

    def close(self) -> None:
        """Say goodbye: the engine process exits when it sees its socket closed."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports are what they claim to be without inheriting it.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._receive(decode_from_engine(payload))
        except (FrameTooLarge, msgspec.DecodeError) as error:
            # There is no finding the next frame after this: treat the engine as lost.
            logger.error(Event("engine_protocol_error", reason=error))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)
