"""The way to the endpoints that generate, past the framework's router. It knows no endpoint's meaning.

Of a short request, matching routes, solving dependencies that there are none of, and three stacks of contexts took as
long as everything else together; these endpoints read their own bodies and make their own responses.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import respond_to_error
from server.errors import ServerError

Endpoint = Callable[[Request], Awaitable[Response]]


class DirectRoutes:
    """ASGI: posts to the paths of `endpoints` go straight there, everything else to `otherwise`."""

    def __init__(self, endpoints: Mapping[str, Endpoint], otherwise: ASGIApp) -> None:
        self._endpoints = endpoints
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        endpoint = self._endpoints.get(scope["path"]) if is_post else None
        if endpoint is None:
            await self._otherwise(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
            await response(scope, receive, send)
        except ServerError as error:  # of a response: before it has sent anything
            response = await respond_to_error(request, error)
            await response(scope, receive, send)
