"""The two ways to load a server. Each returns a record for every request it started. Knows no HTTP."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol

from loadtest.record import Record
from loadtest.workload import Request

Send = Callable[[Request, float | None], Awaitable[Record]]
Clock = Callable[[], float]


class Watcher(Protocol):
    """Told of every request as it starts and ends."""

    def started(self) -> None:
        """A request is about to be sent."""

    def finished(self, record: Record) -> None:
        """A request has ended."""


async def closed_loop(
    send: Send, requests: Iterator[Request], concurrency: int, may_send: Callable[[], bool], watcher: Watcher
) -> list[Record]:
    """`concurrency` workers share `requests`; each sends its next when its last has ended.

    Ends when the requests run out or `may_send` says no; what is under way is waited for.
    """
    records: list[Record] = []

    async def work() -> None:
        while may_send() and (request := next(requests, None)) is not None:
            watcher.started()
            record = await send(request, None)
            records.append(record)
            watcher.finished(record)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    return records


async def open_loop(
    send: Send, requests: Sequence[Request], arrivals: Sequence[float], clock: Clock, watcher: Watcher
) -> list[Record]:
    """Send each request at its arrival time, seconds from now, however many are still unanswered.

    The schedule never waits for an answer, and each request is told its scheduled time, late or not: a stall, here or
    in the server, then shows in the latency of every request due during it (no coordinated omission).
    """
    records: list[Record] = []

    async def send_one(request: Request, intended: float) -> None:
        watcher.started()
        record = await send(request, intended)
        records.append(record)
        watcher.finished(record)

    start = clock()
    async with asyncio.TaskGroup() as group:
        for request, arrival in zip(requests, arrivals, strict=True):
            await asyncio.sleep(max(0.0, start + arrival - clock()))
            group.create_task(send_one(request, start + arrival))
    return records
