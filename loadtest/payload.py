"""The HTTP side of a request as pure data: its URL, headers and JSON body."""

import msgspec

from loadtest.config import RequestOptions, ServerOptions, extra_fields
from loadtest.workload import Request

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def endpoint_url(base: str, path: str) -> str:
    """`path` (which starts with /v1) on the server at `base`, which may end in /v1 or a slash."""
    return base.rstrip("/").removesuffix("/v1").rstrip("/") + path


def headers(server: ServerOptions, host: str) -> dict[str, str]:
    """Headers of every request. Compression is declined: it would hold events back."""
    plain = {
        "Host": host,
        "Content-Type": "application/json",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "User-Agent": "minigpt-loadtest",
    }
    leaving = {"Connection": "close"} if server.fresh_connections else {}
    return plain | leaving | ({"Authorization": f"Bearer {server.api_key}"} if server.api_key else {})


class BodyWriter:
    """Writes request bodies for one model and endpoint."""

    def __init__(self, model: str, endpoint: str, options: RequestOptions) -> None:
        stream_options = {"include_usage": True}
        if options.continuous_usage:
            stream_options["continuous_usage_stats"] = True
        self._fixed: dict[str, object] = {
            "model": model,
            "stream": True,
            "stream_options": stream_options,
            "temperature": options.temperature,
        }
        if options.ignore_eos:
            self._fixed["ignore_eos"] = True
        self._is_chat = endpoint == "chat"
        self._sends_min_tokens = options.min_tokens
        self._extra = extra_fields("extra_body", options.extra_body)

    def write(self, request: Request) -> bytes:
        """The JSON body; what the user gave as extra has the last word, and its nulls remove."""
        body = self._fixed | {"max_tokens": request.max_tokens, "seed": request.seed}
        if self._is_chat:
            body["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            body["prompt"] = request.prompt
        if self._sends_min_tokens:
            body["min_tokens"] = request.max_tokens
        body |= self._extra
        return msgspec.json.encode({name: value for name, value in body.items() if value is not None})
