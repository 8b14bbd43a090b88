"""From the first signal to the last byte: runs HTTP and engine side by side, drains, and stops both in order.

Knows neither endpoints nor what the engine does.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from server.engine_client import EngineClient
from server.logs import Event
from server.stream_protocol import stream_protocol
from server.supervisor import Supervisor

EXIT_OK = 0
EXIT_CUT_SHORT = 1
# Once every request has ended, how long their last bytes may take to leave; and how long when there is hurry.
FLUSH_SECONDS = 5
HURRIED_FLUSH_SECONDS = 1

logger = logging.getLogger(__name__)


class HttpServer(uvicorn.Server):
    """Uvicorn without its signal handling, which would stop at the first signal instead of draining."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def build_http_server(app: ASGIApp, access_log: bool) -> HttpServer:
    """An HTTP server for a socket that is listening already."""
    logging.getLogger("uvicorn.error").addFilter(is_no_cancellation)
    return HttpServer(
        uvicorn.Config(
            app,
            http=stream_protocol(),
            ws="none",
            log_config=None,
            access_log=access_log,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=FLUSH_SECONDS,
        )
    )


def is_no_cancellation(record: logging.LogRecord) -> bool:
    """False for the traceback that Uvicorn logs, as an application's error, of a request that is cut on purpose."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class Lifetime:
    """One run of the server."""

    def __init__(
        self,
        http: HttpServer,
        supervisor: Supervisor,
        client: EngineClient,
        drain_seconds: float,
        started_at: float,
    ) -> None:
        self._http = http
        self._started_at = started_at
        self._supervisor = supervisor
        self._client = client
        self._drain_seconds = drain_seconds
        self._signalled = asyncio.Event()
        self._hurried = asyncio.Event()

    async def run(self, listener: socket.socket) -> int:
        """Serve on `listener` until told to stop; returns the exit code. Raises CannotStart or EngineGivenUp."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, signal.Signals(number).name)
        url = url_of(listener)
        engine = asyncio.create_task(self._supervisor.run())
        http = asyncio.create_task(self._http.serve(sockets=[listener]))
        announced = asyncio.create_task(self._announce(url))
        signalled = asyncio.create_task(self._signalled.wait())
        await asyncio.wait({engine, http, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if signalled.done():
            await self._drain()
        for task in (signalled, announced):
            task.cancel()
        self._supervisor.stop()
        self._http.should_exit = True
        # HTTP first, whatever became of the engine: streams that were cut still get to say so.
        await http
        await engine
        return EXIT_CUT_SHORT if self._hurried.is_set() else EXIT_OK

    def _on_signal(self, name: str) -> None:
        if self._hurried.is_set():
            self._force_exit()
        elif self._signalled.is_set():
            logger.warning(Event("stopping_now", signal=name))
            self._hurried.set()
            # Not at once: streams that are cut still get to say so.
            asyncio.get_running_loop().call_later(HURRIED_FLUSH_SECONDS, self._force_exit)
        else:
            open_requests = self._client.num_open_requests
            logger.info(Event("draining", signal=name, open_requests=open_requests, limit_seconds=self._drain_seconds))
            self._signalled.set()

    def _force_exit(self) -> None:
        self._http.force_exit = True

    async def _announce(self, url: str) -> None:
        """Log the line people and scripts wait for, once."""
        logger.info(Event("listening", url=url))
        await self._client.wait_until_ready()
        seconds = time.monotonic() - self._started_at
        logger.info(Event("ready", url=url, models=",".join(self._client.models()), seconds=seconds))

    async def _drain(self) -> None:
        """Refuse new work; wait for what is open until it is done, time is up, or a second signal comes."""
        self._client.drain()
        idle = asyncio.create_task(self._client.wait_until_idle())
        hurried = asyncio.create_task(self._hurried.wait())
        await asyncio.wait({idle, hurried}, timeout=self._drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (idle, hurried):
            task.cancel()
        if cut := self._client.num_open_requests:
            logger.warning(Event("drain_cut", open_requests=cut))
        else:
            logger.info(Event("drained"))


def url_of(listener: socket.socket) -> str:
    """The address a client on this machine would use."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
