"""What is kept of one request after it ended, whichever way. Data only."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "error", "disconnected"]


def reason(problem: Exception) -> str:
    """What went wrong, in words."""
    return str(problem) or type(problem).__name__


class RequestError(Exception):
    """A request that failed: `kind` is what it is counted under, `detail` one line for a person.

    Kinds: connect, timeout, http_<status>, stream_error, truncated, malformed.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = " ".join(detail.split())[:300]


@dataclass(frozen=True)
class Record:
    """One request. All times are seconds; `intended`, `sent` and `end` are readings of the run's clock.

    `ttft` and `e2e` count from `intended`, so that waiting inside the load generator is part of the latency.
    """

    index: int
    outcome: Outcome
    error_kind: str | None
    error_detail: str | None
    intended: float
    sent: float
    end: float
    ttft: float | None
    tpot: float | None
    e2e: float
    itls: tuple[float, ...]
    num_chunks: int
    prompt_tokens: int | None
    cached_tokens: int
    output_tokens: int
    has_usage: bool
    finish_reason: str | None
