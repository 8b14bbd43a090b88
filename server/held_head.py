"""Uvicorn's HTTP protocol with one system call for the head of an answer and what comes first behind it.

They were a packet each, and the client woken by each.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class HeldHead(asyncio.Transport):
    """A transport over another, which gets the first write after `hold` with the next, or in the loop's next turn."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._holds_next = False
        self._held = b""

    def hold(self) -> None:
        """The next write is a head."""
        self._holds_next = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._holds_next:
            self._holds_next = False
            self._held += bytes(data)
            self._loop.call_soon(self._flush)
        elif self._held:
            held, self._held = self._held, b""
            self._transport.write(held + bytes(data))
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)


class HoldingProtocol(HttpToolsProtocol):
    """Holds the head of every answer."""

    _answers: HeldHead

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        self._answers = HeldHead(transport, self.loop)
        super().connection_made(self._answers)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._answers.hold()
