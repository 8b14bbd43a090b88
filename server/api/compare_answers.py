"""The bodies of /v1/compare, field by field. Knows no engine and no HTTP.

UNSET fields are left out of the JSON, None fields are null.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from server.api.answers import CompletionChoice, DraftedTokens, Parameter, Usage
from server.api.errors import ErrorBody


class StrategyMetrics(Struct):
    """Measured over the tokens of the answer; null where there are too few. Logprobs (natural) and entropies (nats) are
    those of the model's own distribution, whatever the strategy made of it."""

    num_tokens: int
    total_logprob: float
    mean_logprob: float | None
    perplexity: float | None  # exp(-mean_logprob)
    mean_entropy: float | None
    distinct_1: float | None
    distinct_2: float | None
    repetition_rate: float | None
    time_to_first_token_seconds: float | None
    tokens_per_second: float | None  # generated, over the time from the request to the last of them


class StrategyAnswer(CompletionChoice, kw_only=True):
    """A choice with its strategy's name. In a stream `resolved_parameters` come with a strategy's first event, and
    `metrics`, `drafts` and `error` with its last."""

    name: str
    error: ErrorBody | UnsetType = UNSET  # what ended this strategy alone; its text ends there
    metrics: StrategyMetrics | UnsetType = UNSET
    drafts: DraftedTokens | UnsetType = UNSET
    resolved_parameters: dict[str, Parameter] | UnsetType = UNSET


class Pair(Struct):
    """Two strategies' tokens against each other."""

    strategies: tuple[str, str]
    first_divergence: int | None  # the first position that differs; null for equal answers
    similarity: float  # 2 * longest common subsequence / sum of lengths


class CompareAnswer(Struct):
    """The whole of a response, or one event of a stream: one strategy's, or the last, with pairs and usage."""

    id: str
    object: Literal["compare", "compare.chunk"]
    created: int
    model: str
    strategies: Sequence[StrategyAnswer]
    system_fingerprint: str
    pairs: list[Pair] | UnsetType = UNSET
    usage: Usage | UnsetType = UNSET
