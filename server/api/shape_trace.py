"""From what the engine tells of a token's choice to what clients get: texts beside ids, words for fates."""

import math
from array import array
from collections.abc import Iterable, Sequence

from msgspec import UNSET, UnsetType

from server.api import shape_trace_answers as answers
from server.api.choice import ShownToken
from server.api.logprobs import TokenNames, finite
from server.engine.tracing_types import Contender, DraftFate, DraftTrace, StageTrace, TokenTrace

_DECIMALS = 6  # of attention weights, which come in thousands
_REASONS: dict[DraftFate, tuple[answers.Verdict, str]] = {
    "accepted": ("accepted", "the model chose it, too"),
    "rejected": ("rejected", "the model chose another token"),
    "behind a rejected one": ("not verified", "a draft before it was rejected"),
    "behind the end": ("not verified", "the sequence ended before it"),
}


def trace_entries(tokens: Sequence[ShownToken], names: TokenNames) -> list[answers.TraceEntry] | UnsetType:
    """One entry for each token; UNSET where there is nothing to tell."""
    return [_entry(token.id, token.trace, names) for token in tokens if token.trace is not None] or UNSET


def _entry(token: int, trace: TokenTrace, names: TokenNames) -> answers.TraceEntry:
    entry = answers.TraceEntry(
        chosen=answers.Chosen(
            token,
            names.name(token),
            rank=trace.rank,
            probability=math.exp(trace.logprob),
            logprob=finite(trace.logprob),
            final_rank=trace.final_rank,
            final_probability=trace.final_probability,
        ),
        raw=answers.Raw(trace.entropy, _raw_candidates(trace, names)),
        stages=[_stage(stage, names) for stage in trace.stages],
        draw=None if trace.winner is None else _draw(trace.winner, trace.runner_up, names),
        drafts=[_draft(draft, names) for draft in trace.drafts],
    )
    if trace.experts:
        entry.experts = [
            [answers.Expert(expert, weight) for expert, weight in zip(layer.experts, layer.weights, strict=True)]
            for layer in trace.experts
        ]
    if trace.attention:
        entry.attention = _attention(trace.attention)
    return entry


def _raw_candidates(trace: TokenTrace, names: TokenNames) -> list[answers.RawCandidate]:
    return [
        answers.RawCandidate(token, names.name(token), finite(logprob), math.exp(logprob))
        for token, logprob in zip(trace.top_tokens, trace.top_logprobs, strict=True)
    ]


def _stage(stage: StageTrace, names: TokenNames) -> answers.Stage:
    top = zip(stage.top_tokens, stage.top_probabilities, strict=True)
    candidates = [answers.Candidate(token, names.name(token), probability) for token, probability in top]
    return answers.Stage(stage.name, stage.num_before, stage.num_after, stage.removed, candidates)


def _draw(winner: Contender, runner_up: Contender | None, names: TokenNames) -> answers.Draw:
    return answers.Draw(_contender(winner, names), None if runner_up is None else _contender(runner_up, names))


def _contender(one: Contender, names: TokenNames) -> answers.Contender:
    return answers.Contender(one.token, names.name(one.token), one.logit, one.noise, one.score)


def _draft(draft: DraftTrace, names: TokenNames) -> answers.Draft:
    return answers.Draft(draft.token, names.name(draft.token), *_REASONS[draft.fate])


def _attention(layers: Iterable[Iterable[bytes]]) -> list[list[list[float]]]:
    """The engine runs on the same machine, so the bytes are in this one's order."""
    return [[[round(weight, _DECIMALS) for weight in array("f", head)] for head in layer] for layer in layers]
