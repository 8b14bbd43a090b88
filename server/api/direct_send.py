"""Ways past the layers for what they have no interest in: the bodies of a stream whose head has gone by.

Every layer in between costs a call for each event of each stream, and looks at nothing but the head and the end.
"""

from typing import Protocol

from starlette.types import Scope, Send

_SEND = "minigpt.direct_send"
_BODY = "minigpt.direct_body"


class DirectBody(Protocol):
    """The body of the response under way, written without a task to wait in."""

    def write(self, piece: bytes) -> bool:
        """To be called between the body's first piece and its last, with no `send` under way; it is over at once.

        The piece leaves in the event loop's next turn: ahead of what a task sends that is woken afterwards, but behind
        what is sent in this turn. False, with nothing written, while the client reads too slowly or when it has gone:
        then `send` is the way, which waits, or gives up.
        """
        ...


def keep_direct_send(scope: Scope, send: Send) -> None:
    """To be called with what the server itself gave."""
    scope[_SEND] = send


def direct_send(scope: Scope, send: Send) -> Send:
    """What was kept; `send` where nothing was."""
    direct: Send = scope.get(_SEND, send)
    return direct


def offer_direct_body(scope: Scope, body: DirectBody) -> None:
    """To be called by a server that has one."""
    scope.setdefault("extensions", {})[_BODY] = body


def direct_body(scope: Scope) -> DirectBody | None:
    """What the server offered; None where it has nothing of the kind."""
    body: DirectBody | None = scope.get("extensions", {}).get(_BODY)
    return body
