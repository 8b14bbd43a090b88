"""Noticing that a client has left while nothing is being sent to it. It knows nothing of what is being awaited."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import Request

from server.api.errors import ClientLeft

T = TypeVar("T")


async def unless_client_leaves(request: Request, work: Coroutine[None, None, T]) -> T:
    """The result of `work`. Raises ClientLeft, with `work` cancelled and ended, if the client disconnects first.

    The request's body must have been read: what `receive` then reports is the departure.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_departure(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
