"""The one exception tree of the server. It knows no HTTP: the API turns each of these into a status in one place.

ServerError
    BadRequest          the client's mistake: which parameter, which value, which limit
    QueueFull           too much is waiting; come back after `retry_after_seconds`
    Draining            the server is shutting down and takes no new work
    EngineUnavailable   no engine at the moment: still loading, or being restarted
    EngineFailed        the engine died under a request that was open
    CannotStart         a setting or a checkpoint that can never work as it is: one line and exit code 2
    EngineGivenUp       the engine keeps dying: exit code 1
    FrameTooLarge       a message between the processes is beyond every honest size
    Disconnected        the process at the other end of the socket has gone

Most are no errors of the server: they are named for what happened, which N818 would have end in "Error".
"""


class ServerError(Exception):
    """Root of everything the server raises on purpose."""


class BadRequest(ServerError):  # noqa: N818 (an event)
    """A request that can never succeed as it is. `parameter` names the field, `code` is for programs to read."""

    def __init__(self, message: str, parameter: str | None, code: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter
        self.code = code
        self.status = status


class QueueFull(ServerError):  # noqa: N818 (an event)
    """The bound on waiting or open sequences is reached; `retry_after_seconds` (at least 1) is an estimate."""

    def __init__(self, retry_after_seconds: int, message: str = "the queue is full") -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Draining(ServerError):  # noqa: N818 (an event)
    """The server is shutting down: open requests finish, new ones are refused."""


class EngineUnavailable(ServerError):  # noqa: N818 (an event)
    """There is no engine to take the request: it is still loading, restarting, or has been given up."""


class EngineFailed(ServerError):  # noqa: N818 (an event)
    """The engine process died while the request was open; its sequences ended with outcome "error"."""


class CannotStart(ServerError):  # noqa: N818 (an event)
    """The server cannot serve what it was told to. The message is one line naming field, value and limit."""


class EngineGivenUp(ServerError):  # noqa: N818 (an event)
    """The engine process died too often in a row to be worth another start."""


class FrameTooLarge(ServerError):  # noqa: N818 (an event)
    """A frame is, or says it is, longer than allowed. The connection cannot be used any further."""


class Disconnected(ServerError):  # noqa: N818 (an event)
    """The process at the other end has closed the connection or is gone; there is nobody left to work for."""
