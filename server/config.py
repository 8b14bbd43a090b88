"""Every setting of the server, with its default and its limits. The command line is generated from these classes.

Reads no files and no environment.
"""

import ipaddress
from dataclasses import dataclass, field
from typing import Annotated, Literal, NoReturn

import tyro

from server.admission import QueueLimits
from server.api.settings import ApiSettings
from server.engine.config import EngineConfig
from server.engine.types import MAX_DRAFT_TOKENS, DraftMethod, Speculation
from server.errors import CannotStart
from server.logs import LogFormat

LogLevel = Literal["debug", "info", "warning", "error"]
MAX_PORT = 65_535
MAX_DRAIN_SECONDS = 3_600.0
MAX_QUEUE = 65_536


@dataclass(frozen=True)
class ModelOptions:
    """What to serve."""

    model: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="[NAME=]PATH")] = ()
    """A folder with config.json, model.safetensors and tokenizer.json, and what to call it (the folder's name).
    Repeat it to serve several.
    Without it, every checkpoint under checkpoints/ is served."""


@dataclass(frozen=True)
class SpeculationOptions:
    """Guessing tokens ahead: faster, never different."""

    draft: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="[NAME=]PATH")] = ()
    """A small model that drafts for the model NAME, or for all with the same tokenizer. Repeat it for several.
    Without it, a folder beside a model's whose name ends in -draft is taken if the tokenizer is the same; off takes
    none."""

    speculative: DraftMethod = "off"
    """How requests that do not say draft: by the draft model, by looking up earlier tokens (ngram, suffix), by whatever
    pays (auto), or not at all."""

    speculative_tokens: int = Speculation.num_tokens
    """Tokens drafted per step at most, by requests that do not say."""

    def __post_init__(self) -> None:
        count = self.speculative_tokens
        limit = f"must be from 1 to {MAX_DRAFT_TOKENS}"
        require(1 <= count <= MAX_DRAFT_TOKENS, "speculative_tokens", count, limit)


@dataclass(frozen=True)
class HttpOptions:
    """Where to listen, for whom, and how much to accept."""

    host: str = "127.0.0.1"
    """Address to listen on. The default is reachable from this machine only; 0.0.0.0 is every interface."""

    port: int = 8000
    """Port to listen on; 0 takes a free one, which the log then names."""

    api_key: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY")] = ()
    """Accept only requests with this bearer key.
    Repeat it for several; each has a prefix cache of its own.
    Other users of this machine can read command lines: MINIGPT_API_KEY in the environment does the same unseen."""

    max_queue: int = 512
    """Sequences that may wait for their first step, per model. More are refused with 503 and a Retry-After."""

    drain_seconds: float = 30.0
    """After SIGTERM or Ctrl-C, how long open requests may go on before they are cut. A second Ctrl-C cuts them."""

    max_body_bytes: int = ApiSettings.max_body_bytes
    """Largest request body."""

    max_prompts: int = ApiSettings.max_prompts
    """Most prompts in one completion request."""

    max_choices: int = ApiSettings.max_choices
    """Largest `n`."""

    max_sequences: int = ApiSettings.max_sequences
    """Most sequences (prompts times `n`) in one request."""

    def __post_init__(self) -> None:
        require(bool(self.host), "host", repr(self.host), "must be an address or a host name")
        require(0 <= self.port <= MAX_PORT, "port", self.port, f"must be from 0 to {MAX_PORT}")
        for key in self.api_key:
            usable = bool(key) and key.isascii() and key.isprintable() and key == key.strip()
            require(usable, "api_key", "(hidden)", "must be printable ASCII, not empty, without spaces around it")
        require(1 <= self.max_queue <= MAX_QUEUE, "max_queue", self.max_queue, f"must be from 1 to {MAX_QUEUE}")
        seconds = self.drain_seconds
        require(0 <= seconds <= MAX_DRAIN_SECONDS, "drain_seconds", seconds, f"must be from 0 to {MAX_DRAIN_SECONDS:g}")
        for name in ("max_body_bytes", "max_prompts", "max_choices", "max_sequences"):
            require(1 <= getattr(self, name) < 2**31, name, getattr(self, name), f"must be from 1 to {2**31 - 1}")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True)
class LogOptions:
    """What to log, to standard error."""

    log_level: LogLevel = "info"
    """Least severe event to log."""

    log_format: LogFormat = "text"
    """text is one `key=value` line per event, json one object per line."""

    access_log: bool = False
    """Log a line for every HTTP request."""


@dataclass(frozen=True)
class ServerConfig:
    """All settings of one server."""

    models: ModelOptions = field(default_factory=ModelOptions)
    speculation: SpeculationOptions = field(default_factory=SpeculationOptions)
    http: HttpOptions = field(default_factory=HttpOptions)
    engine: EngineConfig = field(default_factory=EngineConfig)
    """How the engine runs."""
    log: LogOptions = field(default_factory=LogOptions)

    def queue_limits(self) -> QueueLimits:
        return QueueLimits(self.http.max_queue, self.http.max_queue + self.engine.max_running)

    def api_settings(self, api_keys: tuple[str, ...]) -> ApiSettings:
        """The limits of the HTTP edge, with the keys from wherever they came."""
        http = self.http
        return ApiSettings(
            api_keys=api_keys,
            max_body_bytes=http.max_body_bytes,
            max_prompts=http.max_prompts,
            max_choices=http.max_choices,
            max_sequences=http.max_sequences,
            speculation=Speculation(self.speculation.speculative, self.speculation.speculative_tokens),
        )


def refuse(field_name: str, value: object, limit: str) -> NoReturn:
    """Raise CannotStart for a setting (its field's name), in the one form all refusals have."""
    raise CannotStart(f"--{field_name.replace('_', '-')} {value}: {limit}")


def require(holds: bool, field_name: str, value: object, limit: str) -> None:
    """Refuse unless `holds`. Write `holds` so that NaN makes it false: `0 < x <= 5`, not `not x > 5`."""
    if not holds:
        refuse(field_name, value, limit)
