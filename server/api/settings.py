"""The limits and secrets of the HTTP edge. The command line is generated from these fields; nothing here reads them."""

from dataclasses import dataclass

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 256
MAX_MESSAGES = 4096
MAX_CONTENT_PARTS = 4096


@dataclass(frozen=True)
class ApiSettings:
    """Bounds on one request, and who may send it."""

    api_keys: tuple[str, ...] = ()
    """Accepted bearer keys. None means that everybody may ask. With several, each key has its own prefix cache."""

    max_body_bytes: int = 4 * 1024 * 1024
    """Largest request body."""

    max_prompts: int = 64
    """Most prompts in one completion request."""

    max_choices: int = 16
    """Largest `n`."""

    max_sequences: int = 256
    """Most sequences (prompts times `n`) in one request."""

    retry_after_seconds: int = 5
    """What a client is told to wait for while the engine is unavailable or the server drains."""

    sse_ping_seconds: int = 0
    """Seconds between comment lines in silent streams, for proxies that close those; 0 sends none."""

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_prompts", "max_choices", "max_sequences", "retry_after_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.sse_ping_seconds < 0:
            raise ValueError(f"sse_ping_seconds is {self.sse_ping_seconds}; it must not be negative")
        if any(not key or not key.isascii() or key != key.strip() for key in self.api_keys):
            raise ValueError("an API key must be non-empty ASCII without surrounding spaces")
