"""What can be learned about the work done: finished sequences and requests, and who listens. Knows no Prometheus."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from server.engine.types import FinishReason, StepStats

Outcome = FinishReason
Rejection = Literal["queue_full", "unavailable", "draining"]


@dataclass(frozen=True, slots=True)
class SequenceRecord:
    """A sequence that has ended. Times are time.monotonic() as the HTTP process saw them; None: it never got there."""

    model: str
    outcome: Outcome
    arrived_at: float
    scheduled_at: float | None
    first_token_at: float | None
    finished_at: float
    num_prompt_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A client's request that has ended. Its outcome is the worst of its sequences': error, abort, length, stop."""

    model: str
    outcome: Outcome
    arrived_at: float
    finished_at: float


class TokenGap(NamedTuple):
    """`num_tokens` tokens, each `seconds` after its sequence's one before (a step that brings several shares).

    Sequences that had their last tokens in one step have their next ones after equal times, and are told of together.
    """

    seconds: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepTimings:
    """What one step meant for those who wait for its tokens."""

    queue_seconds: Sequence[float] = ()  # of the sequences scheduled for the first time: arrival to that step
    prefill_seconds: Sequence[float] = ()  # of those with a first token: first scheduled to that token
    first_token_seconds: Sequence[float] = ()  # of the same: arrival to that token
    gaps: Sequence[TokenGap] = ()  # of all others with a token


class Listener(Protocol):
    """Told of everything that happens to requests and engine, in order, from the event loop's thread."""

    def on_rejected(self, model: str, reason: Rejection) -> None: ...

    def on_started(self, model: str, num_sequences: int) -> None: ...

    def on_step(self, model: str, stats: StepStats, timings: StepTimings) -> None: ...

    def on_finished(self, record: SequenceRecord) -> None: ...

    def on_request_finished(self, record: RequestRecord) -> None: ...

    def on_engine_ready(self) -> None: ...

    def on_engine_lost(self) -> None: ...
