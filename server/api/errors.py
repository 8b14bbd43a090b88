"""The one place that turns exceptions into HTTP: status, OpenAI-shaped body, headers. It knows no endpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.api.settings import RETRY_AFTER_SECONDS
from server.errors import BadRequest, Draining, EngineFailed, EngineUnavailable, QueueFull, ServerError

# The rest of the body is not read: a connection in the middle of one is of no further use.
_CLOSING = frozenset({408, 413})
_MAX_SHOWN_PATH = 200


class ClientLeft(ServerError):  # noqa: N818 (an event)
    """The client closed the connection before its answer was ready; there is nobody to tell."""


class ErrorBody(msgspec.Struct):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


@dataclass(frozen=True)
class ApiError:
    """An exception as HTTP."""

    status: int
    body: ErrorBody
    headers: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return msgspec.json.encode({"error": self.body})

    def to_response(self) -> Response:
        return Response(self.to_json(), self.status, dict(self.headers), media_type="application/json")


def to_api_error(error: Exception) -> ApiError:
    """The HTTP form of any exception."""
    match error:
        case BadRequest():
            return _client_error(error.status, error.message, error.parameter, error.code)
        case QueueFull():
            return _try_later(str(error), "queue_full", error.retry_after_seconds)
        case Draining():
            return _try_later(str(error) or "The server is shutting down.", "draining", RETRY_AFTER_SECONDS)
        case EngineUnavailable():
            return _try_later(str(error) or "The model is not ready.", "engine_unavailable", RETRY_AFTER_SECONDS)
        case EngineFailed():
            return _server_error(500, str(error) or "The engine failed.", "engine_error")
        case ClientLeft():
            return _server_error(499, "The client closed the connection.", "client_left")
        case HTTPException():
            return _routing_error(error)
    return _server_error(500, "The server failed to handle the request.", "internal_error")


async def respond_to_error(request: Request, error: Exception) -> Response:
    """The exception handler of the whole application."""
    if isinstance(error, HTTPException):
        error = HTTPException(error.status_code, f"{request.method} {_shown_path(request)}", error.headers)
    return to_api_error(error).to_response()


def _shown_path(request: Request) -> str:
    """The path as it was sent, percent signs and all: decoded it may hold anything, and not even be a URL again."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode("utf-8", "surrogateescape")
    return quote(raw[:_MAX_SHOWN_PATH], safe="/%:@!$&'()*+,;=-._~")


def _client_error(status: int, message: str, parameter: str | None, code: str) -> ApiError:
    headers = {"Connection": "close"} if status in _CLOSING else {}
    return ApiError(status, ErrorBody(message, "invalid_request_error", parameter, code), headers)


def _server_error(status: int, message: str, code: str) -> ApiError:
    return ApiError(status, ErrorBody(message, "server_error", None, code))


def _try_later(message: str, code: str, seconds: int) -> ApiError:
    return ApiError(503, ErrorBody(message, "server_error", None, code), {"Retry-After": str(max(1, seconds))})


def _routing_error(error: HTTPException) -> ApiError:
    """What the router raises by itself: no such path, or no such method on it."""
    reasons = {404: ("no such endpoint", "not_found"), 405: ("method not allowed", "method_not_allowed")}
    reason, code = reasons.get(error.status_code, ("refused", "http_error"))
    body = ErrorBody(f"{error.detail}: {reason}.", "invalid_request_error", None, code)
    return ApiError(error.status_code, body, error.headers or {})
