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


class WhileClientStays:
    """`async with`: the block is cancelled, and ClientLeft raised in its place, as soon as the client disconnects
    or the server can no longer tell.

    The request's body must have been read: what `receive` then reports is the departure. As `asyncio.timeout`, which
    keeps to the same rules of cancelling, this costs one task less than waiting for two.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_left = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._num_cancels = task.cancelling()
        self._watching = asyncio.create_task(self._watch())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watching.cancel()
        if self._has_left and self._task.uncancel() <= self._num_cancels and kind is asyncio.CancelledError:
            raise ClientLeft from error

    async def _watch(self) -> None:
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except (OSError, RuntimeError):  # what servers raise on a connection that is no more
            # Nobody waits for this task: unseen, its end would leave the work to a client that may be gone.
            logger.exception("whether the client is there cannot be told; it counts as gone")
        self._has_left = True
        self._task.cancel()


async def unless_client_leaves(request: Request, work: Coroutine[None, None, T]) -> T:
    """The result of `work`. Raises ClientLeft, with `work` cancelled and ended, if the client disconnects first."""
    async with WhileClientStays(request.receive):
        return await work
