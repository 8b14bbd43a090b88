"""Keeps an engine process running: starts it, connects the client to it, starts it again when it dies, or gives up.

Knows processes and sockets; knows neither requests nor models.
"""

import asyncio
import logging
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from server.engine_client import EngineClient
from server.engine_connection import EngineConnection
from server.errors import CannotStart, EngineGivenUp
from server.logs import Event
from server.protocol import Configure, Fatal, FromEngine, Ready

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestartPolicy:
    """When to start a dead engine again, and when to stop trying."""

    first_delay_seconds: float = 0.2  # doubled for each further death in a row
    max_delay_seconds: float = 10.0
    max_deaths: int = 5  # in a row; the next one gives up
    healthy_after_seconds: float = 60.0  # a death after this long at work is the first of a new row

    def delay_seconds(self, num_deaths: int) -> float:
        return min(self.max_delay_seconds, self.first_delay_seconds * 2.0 ** (num_deaths - 1))


@dataclass(frozen=True)
class EngineChild:
    """A started engine process and our end of the socket to it."""

    command: tuple[str, ...]
    process: subprocess.Popen[bytes]
    socket: socket.socket
    started_at: float  # time.monotonic()

    @staticmethod
    def start(command: Sequence[str]) -> "EngineChild":
        """Run `command` with the number of its end of a new socket pair as the last argument."""
        started_at = time.monotonic()
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Out of reach of the terminal's Ctrl-C from the first instant, before it could ignore it itself.
                start_new_session=True,
            )
        return EngineChild(tuple(command), process, ours, started_at)


def start_children(command: Sequence[str]) -> Iterator[EngineChild]:
    """A newly started engine process each time one is asked for."""
    while True:
        yield EngineChild.start(command)


class Supervisor:
    """Owns the engine process from `run` to `stop`. Asks `children` for the next one when the last has died."""

    def __init__(
        self,
        children: Iterator[EngineChild],
        configure: Configure,
        client: EngineClient,
        policy: RestartPolicy,
        exit_seconds: float = 5.0,
    ) -> None:
        self._children = children
        self._configure = configure
        self._client = client
        self._policy = policy
        self._exit_seconds = exit_seconds
        self._stopping = asyncio.Event()
        self._connection: EngineConnection | None = None
        self._fatal: str | None = None
        self._started_at = 0.0
        self._ready_at: float | None = None
        self._pid: int | None = None

    async def run(self) -> None:
        """Returns after `stop`. Raises CannotStart when the engine says so, EngineGivenUp in a crash loop."""
        num_deaths = 0
        while True:
            exit_code = await self._run_one()
            if self._stopping.is_set():
                return
            if self._fatal is not None:
                raise CannotStart(self._fatal)
            num_deaths = 1 if self._was_healthy() else num_deaths + 1
            if num_deaths > self._policy.max_deaths:
                raise EngineGivenUp(f"the engine died {num_deaths} times in a row, the last with exit code {exit_code}")
            delay = self._policy.delay_seconds(num_deaths)
            logger.error(
                Event("engine_died", exit_code=exit_code, deaths_in_a_row=num_deaths, restart_in_seconds=delay)
            )
            await self._sleep_unless_stopped(delay)
            if self._stopping.is_set():
                return

    def stop(self) -> None:
        """End the engine and `run`. Requests still open end as errors."""
        self._stopping.set()
        self._close_connection()

    @property
    def engine_pid(self) -> int | None:
        """The engine process of the moment; None between two."""
        return self._pid

    async def _run_one(self) -> int:
        """One engine process from start to end; returns its exit code."""
        child = next(self._children)
        self._started_at, self._ready_at = child.started_at, None
        self._pid = child.process.pid
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_unix_connection(
                lambda: EngineConnection(self._receive), sock=child.socket
            )
            self._connection = connection
            connection.send(self._configure)
            if self._stopping.is_set():  # while we were connecting
                connection.close()
            await connection.lost
        finally:
            self._close_connection()
            self._client.disconnect(
                "the server is shutting down" if self._stopping.is_set() else "the engine process died"
            )
            # One that is still loading does not look at its socket, and has nothing to lose.
            is_loading = self._stopping.is_set() and self._ready_at is None
            exit_code = await asyncio.to_thread(_reap, child.process, 0.0 if is_loading else self._exit_seconds)
            self._pid = None
        return exit_code

    def _receive(self, message: FromEngine) -> None:
        match message:
            case Ready(infos):
                connection = self._connection
                assert connection is not None
                self._ready_at = time.monotonic()
                seconds = self._ready_at - self._started_at
                logger.info(Event("engine_ready", pid=self._pid, models=len(infos), seconds=seconds))
                self._client.connect(infos, connection.send)
            case Fatal(reason):
                self._fatal = reason
            case _:
                self._client.receive(message)

    def _close_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _was_healthy(self) -> bool:
        if self._ready_at is None:
            return False
        return time.monotonic() - self._ready_at >= self._policy.healthy_after_seconds

    async def _sleep_unless_stopped(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


def _reap(process: subprocess.Popen[bytes], patience_seconds: float) -> int:
    """Wait for a process that has lost its connection; kill it if it lingers."""
    try:
        return process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
