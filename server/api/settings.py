"""The limits and secrets of the HTTP edge. The command line is generated from these fields; nothing here reads them."""

from dataclasses import dataclass, field

from server.engine.types import Speculation

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 256
MAX_MESSAGES = 4096
MAX_CONTENT_PARTS = 4096
# Characters whose tokenizing takes about as long as the event loop may be away, a few milliseconds.
LONG_TEXT = 10_000
# /tokenize takes more than a context holds; a megabyte is some seconds of a core.
MAX_TOKENIZE_BYTES = 1024 * 1024
# Of all request bodies that are being read at a time: as many of the largest as fit, or any number of honest ones.
MAX_BYTES_BEING_READ = 256 * 1024 * 1024
# From the headers to the last byte of a body.
READ_BODY_SECONDS = 30.0
# What a client is told to wait for while the engine is unavailable or the server drains.
RETRY_AFTER_SECONDS = 5


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

    speculation: Speculation = field(default_factory=Speculation)
    """How the sequences of a request that does not say are drafted for."""

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_prompts", "max_choices", "max_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if any(not key or not key.isascii() or key != key.strip() for key in self.api_keys):
            raise ValueError("an API key must be non-empty ASCII without surrounding spaces")
