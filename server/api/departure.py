"""Noticing that a client has left while something is being done for it. It knows nothing of what that is."""

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive

from server.api.errors import ClientLeft

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ClientWatch:
    """`with`: the block is cancelled, and ClientLeft raised in its place, as soon as the client disconnects or the
    server can no longer tell. Blocks of one request may follow each other, in whatever tasks.

    The request's body must have been read: what `receive` then reports is the departure. To be closed. As
    `asyncio.timeout`, which keeps to the same rules of cancelling, this costs one task less than waiting for two.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_left = False
        self._task: asyncio.Task[object] | None = None  # that of the block under way
        self._num_cancels = 0
        self._watching = asyncio.create_task(self._watch())

    def close(self) -> None:
        self._watching.cancel()

    def __enter__(self) -> None:
        if self._has_left:
            raise ClientLeft
        self._task = asyncio.current_task()
        assert self._task is not None
        self._num_cancels = self._task.cancelling()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        assert task is not None
        if self._has_left and task.uncancel() <= self._num_cancels and kind is asyncio.CancelledError:
            raise ClientLeft from error

    async def _watch(self) -> None:
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except (OSError, RuntimeError):  # what servers raise on a connection that is no more
            # Nobody waits for this task: unseen, its end would leave the work to a client that may be gone.
            logger.exception("whether the client is there cannot be told; it counts as gone")
        self._has_left = True
        if self._task is not None:
            self._task.cancel()


async def unless_client_leaves(request: Request, work: Coroutine[None, None, T]) -> T:
    """The result of `work`. Raises ClientLeft, with `work` cancelled and ended, if the client disconnects first."""
    watch = ClientWatch(request.receive)
    try:
        with watch:
            return await work
    finally:
        watch.close()
