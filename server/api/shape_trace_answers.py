"""A trace as clients get it, field by field. Knows no engine and no HTTP."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

Verdict = Literal["accepted", "rejected", "not verified"]


class TracedToken(Struct):
    token_id: int
    token: str


class RawCandidate(TracedToken):
    logprob: float
    probability: float


class Candidate(TracedToken):
    probability: float


class Stage(Struct):
    name: str
    candidates_before: int
    candidates_after: int
    removed_probability: float
    top: list[Candidate]


class Raw(Struct):
    """The model's own distribution. Natural logarithms."""

    entropy: float
    top: list[RawCandidate]


class Chosen(TracedToken):
    """Rank and probability in the model's own distribution, and in the one that the stages left."""

    rank: int
    probability: float
    logprob: float
    final_rank: int
    final_probability: float


class Contender(TracedToken):
    """`score` is `logit` plus `noise`."""

    logit: float
    noise: float
    score: float


class Draw(Struct):
    winner: Contender
    runner_up: Contender | None


class Draft(TracedToken):
    verdict: Verdict
    reason: str


class Expert(Struct):
    expert: int
    weight: float


class TraceEntry(Struct):
    """One token. `draw` is null where no noise decides; `experts` is by layer, `attention` by layer and head."""

    chosen: Chosen
    raw: Raw
    stages: list[Stage]
    draw: Draw | None
    drafts: list[Draft]
    experts: list[list[Expert]] | UnsetType = UNSET
    attention: list[list[list[float]]] | UnsetType = UNSET
