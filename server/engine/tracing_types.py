"""What a trace asks for and what it tells of one token: plain frozen data, no torch."""

from dataclasses import dataclass
from typing import Literal

from server.engine.sampling.ranges import Range

MAX_TRACE_TOP = 20
DEFAULT_TRACE_TOP = 5

_TOP = Range(0, MAX_TRACE_TOP)


@dataclass(frozen=True)
class TraceOptions:
    """What is told of every token. Raises ParameterError for a `top` out of range."""

    top: int = DEFAULT_TRACE_TOP  # candidates listed of each distribution
    experts: bool = False
    attention: bool = False

    def __post_init__(self) -> None:
        _TOP.check("trace.top", self.top)


@dataclass(frozen=True)
class StageTrace:
    """What one stage did to the distribution. A candidate is a token that can still be chosen."""

    name: str
    num_before: int  # candidates
    num_after: int
    removed: float  # probability, before the stage, of the candidates it took away
    top_tokens: tuple[int, ...]  # after it, most likely first, ties by lower id
    top_probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Contender:
    """A token in the draw: the one whose logit and noise add up to the highest score is chosen."""

    token: int
    logit: float  # what the stages made of it
    noise: float
    score: float


# What became of a draft: the model chose the same, another, or never looked, as a draft before it was wrong or the
# sequence had ended.
DraftFate = Literal["accepted", "rejected", "behind a rejected one", "behind the end"]


@dataclass(frozen=True)
class DraftTrace:
    """A token that was guessed ahead of the model."""

    token: int
    fate: DraftFate


@dataclass(frozen=True)
class ExpertsTrace:
    """The experts one layer sent a token to, by weight."""

    experts: tuple[int, ...]
    weights: tuple[float, ...]  # sum to 1


@dataclass(frozen=True)
class TokenTrace:
    """How one token came to be chosen.

    First the model's own distribution (natural logarithms), then what the stages made of it, the draw, and, where
    asked for, what went on in the model at the token before.
    """

    entropy: float  # in nats
    top_tokens: tuple[int, ...]  # most likely first, ties by lower id
    top_logprobs: tuple[float, ...]
    logprob: float  # of the chosen token
    rank: int  # 1 = the most likely token
    stages: tuple[StageTrace, ...]  # those that ran, in turn
    final_probability: float  # of the chosen token, after the stages
    final_rank: int
    winner: Contender | None  # the chosen token; None where no noise decides
    runner_up: Contender | None  # None where no other token could have won
    drafts: tuple[DraftTrace, ...] = ()  # for this place; behind it those that were never looked at
    experts: tuple[ExpertsTrace, ...] = ()  # by layer
    attention: tuple[tuple[bytes, ...], ...] = ()  # by layer and head: float32, one for each token so far
