"""Every setting of a load test, with its default and its limits. The command line is generated from these classes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

import msgspec

from loadtest.goodput import parse_limits
from loadtest.lengths import parse_length
from loadtest.refusal import refuse, require

DEFAULT_CONCURRENCY = 8
DEFAULT_NUM_REQUESTS = 100
DEFAULT_PROMPT_LENGTH = 48
DEFAULT_OUTPUT_LENGTH = 64
MAX_CONCURRENCY = 10_000
MAX_RATE = 100_000.0
# Each run draws its requests from a slice of this many indexes, so that no two runs share a prompt.
MAX_REQUESTS = 1_000_000
MAX_SECONDS = 86_400.0
MAX_VOCAB_SIZE = 10_000_000


@dataclass(frozen=True)
class ServerOptions:
    """The server to measure."""

    url: str = "http://127.0.0.1:8000"
    """Its address, with or without /v1."""
    endpoint: Literal["completions", "chat"] = "completions"
    """/v1/completions or /v1/chat/completions; always streamed."""
    model: str | None = None
    """Model name to ask for; the first of /v1/models when not given."""
    api_key: str | None = field(default=None, repr=False)
    """Sent as a bearer token; never written to the results."""
    timeout_seconds: float = 600.0
    """A request that takes longer is ended and counted as an error of kind timeout."""
    fresh_connections: bool = False
    """Open a connection for every request; needed for servers that close it after an answer without saying so."""

    def __post_init__(self) -> None:
        _check_key("api_key", self.api_key)
        _check_url("url", self.url)
        seconds = self.timeout_seconds
        require(0 < seconds <= MAX_SECONDS, "timeout_seconds", seconds, f"must be above 0 and at most {MAX_SECONDS}")


@dataclass(frozen=True)
class RequestOptions:
    """What is asked. Request number i is a pure function of --seed and i."""

    prompt_length: str | None = None
    """fixed:N, uniform:LOW:HIGH, normal:MEAN:SD[:MAX] or lognormal:MEDIAN:SIGMA[:MAX]; in words, or in tokens with
    --prompt-token-ids (default fixed:48, or less where the server tells that a model's context is short)."""
    output_length: str | None = None
    """max_tokens of each request, in the same forms (default fixed:64, or less likewise)."""
    prompts: Path | None = None
    """Take prompts from this file, one a line, in turn; --prompt-length is then unused."""
    prompt_token_ids: bool = False
    """Send random token ids, for exact prompt lengths; needs --vocab-size and --endpoint completions."""
    vocab_size: int | None = None
    """Token ids are drawn below this."""
    shared_prefix: int = 0
    """Words (or tokens) put in front of every prompt, the same for all, to exercise prefix caches."""
    seed: int = 0
    """Seeds prompts, lengths, arrivals and each request's own sampling seed."""
    temperature: float = 0.0
    """Sampling temperature sent to the server."""
    ignore_eos: bool = False
    """Send ignore_eos, so that answers have their full length (not a standard parameter)."""
    min_tokens: bool = False
    """Send min_tokens equal to max_tokens (not a standard parameter)."""
    continuous_usage: bool = False
    """Ask for token counts in every chunk, so that gaps are per token where a chunk carries several."""
    disconnect_fraction: float = 0.0
    """Share of requests that leave early on purpose; counted as disconnected, not as errors."""
    extra_body: str = "{}"
    """A JSON object merged into every request's body; a null removes a parameter."""

    def __post_init__(self) -> None:
        for name, length in (("prompt_length", self.prompt_length), ("output_length", self.output_length)):
            if length is not None:
                parse_length(name, length)
        extra_fields("extra_body", self.extra_body)
        require(not self.prompt_token_ids or self.prompts is None, "prompts", self.prompts, "not with token ids")
        require(0 <= self.shared_prefix <= 1_000_000, "shared_prefix", self.shared_prefix, "must be 0 to 1000000")
        require(0 <= self.seed < 2**31, "seed", self.seed, "must be from 0 to 2147483647")
        require(0 <= self.temperature <= 100, "temperature", self.temperature, "must be from 0 to 100")
        fraction = self.disconnect_fraction
        require(0 <= fraction <= 1, "disconnect_fraction", fraction, "must be from 0 to 1")
        size, limit = self.vocab_size, f"must be given with --prompt-token-ids, from 1 to {MAX_VOCAB_SIZE}"
        require((size is not None) or not self.prompt_token_ids, "vocab_size", size, limit)
        require(size is None or 1 <= size <= MAX_VOCAB_SIZE, "vocab_size", size, limit)


@dataclass(frozen=True)
class LoadOptions:
    """How hard and how long. Several values make a sweep, one run each."""

    concurrency: tuple[int, ...] = ()
    """Closed loop: this many workers, each sending its next request when the last is answered (default 8)."""
    rate: tuple[float, ...] = ()
    """Open loop: this many requests a second, at Poisson arrivals fixed beforehand."""
    sweep: bool = False
    """Turn one value V into a ladder: 1 2 4 ... V workers, or V/8 V/4 V/2 V requests a second."""
    num_requests: int | None = None
    """Requests per run (default 100, or no limit with --duration-seconds)."""
    duration_seconds: float | None = None
    """Send no new request after this long; those under way are waited for."""
    warmup_requests: int = 8
    """Requests sent before each run and not counted."""

    def __post_init__(self) -> None:
        require(not (self.rate and self.concurrency), "rate", self.rate, "not together with --concurrency")
        for workers in self.concurrency:
            require(1 <= workers <= MAX_CONCURRENCY, "concurrency", workers, f"must be from 1 to {MAX_CONCURRENCY}")
        for rate in self.rate:
            require(0 < rate <= MAX_RATE, "rate", rate, f"must be above 0 and at most {MAX_RATE}")
        count, limit = self.num_requests, MAX_REQUESTS - self.warmup_requests
        require(0 <= self.warmup_requests <= 10_000, "warmup_requests", self.warmup_requests, "must be 0 to 10000")
        require(count is None or 1 <= count <= limit, "num_requests", count, f"must be from 1 to {limit}")
        seconds = self.duration_seconds
        limit_text = f"must be above 0 and at most {MAX_SECONDS}"
        require(seconds is None or 0 < seconds <= MAX_SECONDS, "duration_seconds", seconds, limit_text)

    @property
    def max_requests(self) -> int | None:
        """The requests of one run; None where only the duration ends it."""
        if self.num_requests is None and self.duration_seconds is None:
            return DEFAULT_NUM_REQUESTS
        return self.num_requests


@dataclass(frozen=True)
class ReportOptions:
    """What comes out, besides the table."""

    goodput: tuple[str, ...] = ()
    """Limits in milliseconds, as in ttft:200 itl:20 tpot:15 e2e:5000; reports the share of requests within all."""
    json: Path | None = None
    """Write the configuration and all results here."""
    per_request: bool = False
    """Put a record of every request into the JSON file."""
    plot: Path | None = None
    """Write a PNG here: latency against load for a sweep, latency distributions for one load."""
    allow_errors: bool = False
    """Exit with 0 even when requests failed."""

    def __post_init__(self) -> None:
        parse_limits("goodput", self.goodput)
        for name, path in (("json", self.json), ("plot", self.plot)):
            writable = path is None or (path.parent.is_dir() and not path.is_dir())
            require(writable, name, path, "its folder must exist and it must not be one")
        require(self.plot is None or self.plot.suffix == ".png", "plot", self.plot, "must end in .png")
        require(self.json is not None or not self.per_request, "per_request", True, "needs --json")


@dataclass(frozen=True)
class VersusOptions:
    """A second server, measured in turn with the first, in one run."""

    versus: str | None = None
    """Its address. Ratios are first server / second."""
    versus_model: str | None = None
    """Its model name; the first of its /v1/models when not given."""
    versus_api_key: str | None = field(default=None, repr=False)
    """Its bearer token; --api-key is never sent to it."""
    rounds: int = 3
    """Pairs of runs per load: first and second, then second and first, and so on."""

    def __post_init__(self) -> None:
        _check_key("versus_api_key", self.versus_api_key)
        if self.versus is not None:
            _check_url("versus", self.versus)
        require(1 <= self.rounds <= 100, "rounds", self.rounds, "must be from 1 to 100")


@dataclass(frozen=True)
class Config:
    """All settings of one load test."""

    server: ServerOptions = field(default_factory=ServerOptions)
    requests: RequestOptions = field(default_factory=RequestOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    report: ReportOptions = field(default_factory=ReportOptions)
    versus: VersusOptions = field(default_factory=VersusOptions)

    def __post_init__(self) -> None:
        is_chat = self.server.endpoint == "chat"
        require(not (is_chat and self.requests.prompt_token_ids), "endpoint", "chat", "takes no token ids")
        for rate in self.load.rate:
            expected = rate * (self.load.duration_seconds or 0)
            limit = f"times --duration-seconds must be at most {MAX_REQUESTS // 2}, without --num-requests"
            require(self.load.num_requests is not None or expected <= MAX_REQUESTS // 2, "rate", rate, limit)


def extra_fields(name: str, text: str) -> dict[str, object]:
    """The JSON object in `text`; refused under the field's name otherwise."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        value = None
    if not isinstance(value, dict):
        refuse(name, text, "must be a JSON object")
    return cast(dict[str, object], value)


def _check_url(name: str, url: str) -> None:
    require(url.startswith(("http://", "https://")), name, url, "must start with http:// or https://")
    try:
        address = urlsplit(url)
        host, _ = (address.hostname or "").encode("idna"), address.port
    except ValueError as problem:  # a port out of range, brackets left open, a label too long
        refuse(name, url, f"is no address: {problem}")
    require(host != b"", name, url, "must name a host")
    require("@" not in address.netloc, name, url, "must not hold a user's name; a key goes into --api-key")


def _check_key(name: str, key: str | None) -> None:
    fits_a_header = key is None or (key.isascii() and key.isprintable())
    require(fits_a_header, name, "(not shown)", "must be printable ASCII")
