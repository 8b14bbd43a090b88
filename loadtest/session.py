"""Connections to one server: opened without limit, used again, given up in time. Knows nothing of what is asked."""

import asyncio
import ssl
import time
from types import TracebackType
from urllib.parse import quote, urlsplit, urlunsplit

from loadtest.config import ServerOptions
from loadtest.connection import Answer, Clock, Connection
from loadtest.payload import headers

CONNECT_SECONDS = 30.0
# A connection that rested longer may have been forgotten by something between us and the server.
REST_SECONDS = 15.0


class Session:
    """Speaks to one server; use it as a context. There is no limit on connections: a queue in the client would pass for
    latency of the server."""

    def __init__(self, server: ServerOptions, clock: Clock = time.perf_counter) -> None:
        self.server = server
        self.clock = clock
        address = urlsplit(server.url)
        is_tls = address.scheme == "https"
        self._host, self._port = address.hostname or "", address.port or (443 if is_tls else 80)
        self._tls = ssl.create_default_context() if is_tls else None
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in headers(server, address.netloc).items())
        self._resting: list[tuple[float, Connection]] = []

    async def __aenter__(self) -> "Session":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._resting:
            _, connection = self._resting.pop()
            await connection.close()

    def head(self, method: str, url: str) -> bytes:
        """What requests to `url` begin with; `with_body` makes them whole."""
        address = urlsplit(url)
        target = urlunsplit(("", "", quote(address.path, safe="/%:@!$&'()*+,;=~"), address.query, ""))
        return f"{method} {target} HTTP/1.1\r\n{self._fixed}".encode()

    async def exchange(self, request: bytes, answer: Answer) -> None:
        """Send `request` and let `answer` read what comes.

        Raises TimeoutError, OSError (no connection, or it broke), ProtocolError, and what `answer` raises.
        """
        async with asyncio.timeout(self.server.timeout_seconds):
            connection = self._rested() or await self._open()
            try:
                await connection.exchange(request, answer)
            finally:
                self._take_back(connection)

    def _rested(self) -> Connection | None:
        """The connection that rested least, if it is still good."""
        while self._resting:
            since, connection = self._resting.pop()
            if connection.is_free and self.clock() - since < REST_SECONDS:
                return connection
            connection.drop()
        return None

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    lambda: Connection(self.clock), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise
        except OSError as problem:
            raise OSError(f"Cannot connect to host {self._host}:{self._port} [{problem}]") from problem
        return connection

    def _take_back(self, connection: Connection) -> None:
        if connection.is_free and not self.server.fresh_connections:
            self._resting.append((self.clock(), connection))
        else:
            connection.drop()


def with_body(head: bytes, body: bytes = b"") -> bytes:
    """All bytes of a request."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"%b%b\r\n%b" % (head, length, body)
