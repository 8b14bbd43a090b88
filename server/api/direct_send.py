"""The server's own `send`, for what middleware has no interest in: the bodies of a stream whose head has gone by.

Every layer in between costs a call for each event of each stream, and looks at nothing but the head and the end.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

_KEY = "minigpt.direct_send"


class DirectSend:
    """ASGI middleware, around all others that are to be passed by."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_KEY] = send
        await self._app(scope, receive, send)


def direct_send(scope: Scope, send: Send) -> Send:
    """What DirectSend was given; `send` where there is none around the application."""
    direct: Send = scope.get(_KEY, send)
    return direct
