"""The server's own `send`, for what middleware has no interest in: the bodies of a stream whose head has gone by.

Every layer in between costs a call for each event of each stream, and looks at nothing but the head and the end.
"""

from starlette.types import Scope, Send

_KEY = "minigpt.direct_send"


def keep_direct_send(scope: Scope, send: Send) -> None:
    """To be called with what the server itself gave."""
    scope[_KEY] = send


def direct_send(scope: Scope, send: Send) -> Send:
    """What was kept; `send` where nothing was."""
    direct: Send = scope.get(_KEY, send)
    return direct
