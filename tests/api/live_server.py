"""The application behind a real uvicorn on a free loopback port, in a thread of its own."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

import uvicorn
from fastapi import FastAPI

T = TypeVar("T")


class LiveServer:
    """`url` answers until the block that `serving` opened ends."""

    def __init__(self, app: FastAPI) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def start(self) -> None:
        """A listening socket queues connections, so nothing need be waited for but the loop."""
        self._thread.start()
        assert self._started.wait(10)

    def run(self, work: Coroutine[None, None, T]) -> T:
        """The result of `work`, run in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, 10), self._loop).result(15)

    def call(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return self.run(call())

    def wait_for(self, event: asyncio.Event) -> None:
        self.run(event.wait())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        async def poll() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        self.run(poll())

    def terminate(self) -> None:
        """What SIGTERM does to uvicorn: finish what is open, accept nothing more."""
        self.call(lambda: self._server.handle_exit(signal.SIGTERM, None))

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started.set()
        await self._server.serve([self._socket])


@contextmanager
def serving(app: FastAPI) -> Iterator[LiveServer]:
    server = LiveServer(app)
    server.start()
    try:
        yield server
    finally:
        server.terminate()
        server.join()
