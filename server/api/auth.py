"""Who may ask: bearer keys in front of every path that is not listed as open. It knows no endpoint's meaning."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import ApiError, ErrorBody

# For load balancers, which have no key. Every other path, known or not, is behind the key.
OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/version"})


class BearerAuth:
    """ASGI middleware. Leaves `tenant` in the request's state: "" for one key or none, else a digest of the key."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self._app = app
        self._digests = tuple(_digest(key.encode("ascii")) for key in api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or not self._digests:
            await self._app(scope, receive, send)
            return
        digest = self._find(Headers(scope=scope).get("authorization"))
        if digest is None:
            await _UNAUTHORIZED.to_response()(scope, receive, send)
            return
        scope.setdefault("state", {})["tenant"] = digest.hex() if len(self._digests) > 1 else ""
        await self._app(scope, receive, send)

    def _find(self, header: str | None) -> bytes | None:
        """Every key is compared, and digests have one length, so the time tells nothing about any key."""
        scheme, _, credentials = (header or "").partition(" ")
        given = _digest(credentials.strip().encode("latin-1"))
        found = [digest for digest in self._digests if hmac.compare_digest(digest, given)]
        return found[0] if found and scheme.lower() == "bearer" else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


_UNAUTHORIZED = ApiError(
    401,
    ErrorBody(
        "A valid API key is required: send it as 'Authorization: Bearer KEY'.",
        "invalid_request_error",
        None,
        "invalid_api_key",
    ),
    {"WWW-Authenticate": "Bearer"},
)
