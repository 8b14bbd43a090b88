"""The sampler written out for one row, token by token in float64: slow, and hard to get wrong. Knows no torch."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from server.engine.params import SamplingParams

HIDDEN = -math.inf


def log_softmax(logits: Sequence[float]) -> list[float]:
    most = max(logits)
    total = math.fsum(math.exp(logit - most) for logit in logits)
    return [logit - most - math.log(total) for logit in logits]


def softmax(logits: Sequence[float]) -> list[float]:
    return [math.exp(logprob) for logprob in log_softmax(logits)]


def adjusted(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    withheld: Sequence[int] = (),
) -> list[float]:
    """Logits after the stages that come before the temperature."""
    result = []
    for token, given in enumerate(logits):
        logit = given
        if params.allowed_tokens is not None and token not in params.allowed_tokens:
            logit = HIDDEN
        if token in params.banned_tokens or token in withheld:
            logit = HIDDEN
        logit += sum(bias for biased, bias in params.logit_bias if biased == token)
        if token in (*prompt, *output):
            penalty = params.repetition_penalty
            logit = logit / penalty if logit > 0 else logit * penalty
        count = list(output).count(token)
        logit -= params.frequency_penalty * count + (params.presence_penalty if count else 0.0)
        result.append(logit)
    return result


def greedy(logits: Sequence[float]) -> int:
    """The largest, the first of those that tie."""
    return max(range(len(logits)), key=lambda token: (logits[token], -token))


def kept_by_top_k(logits: Sequence[float], k: int) -> set[int]:
    threshold = sorted(logits, reverse=True)[k - 1]
    return {token for token, logit in enumerate(logits) if logit >= threshold}


def kept_by_top_p(logits: Sequence[float], p: float) -> set[int]:
    probabilities = softmax(logits)
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    total, threshold = 0.0, logits[order[-1]]
    for token in order:
        total += probabilities[token]
        if total >= p:
            threshold = logits[token]
            break
    return {token for token, logit in enumerate(logits) if logit >= threshold}


def kept_by_min_p(logits: Sequence[float], p: float) -> set[int]:
    return {token for token, logit in enumerate(logits) if logit >= max(logits) + math.log(p)}


def single(value: float) -> float:
    """A parameter as the sampler sees it, which works in float32."""
    return float(np.float32(value))


def filtered(logits: Sequence[float], params: SamplingParams) -> list[float]:
    """Adjusted logits after temperature, top_k, top_p and min_p, each of which sees what the one before it kept."""
    result = [float(np.float32(logit) / np.float32(params.temperature)) for logit in logits]
    stages: tuple[tuple[bool, Callable[[Sequence[float]], set[int]]], ...] = (
        (0 < params.top_k < len(logits), lambda row: kept_by_top_k(row, params.top_k)),
        (params.top_p < 1.0, lambda row: kept_by_top_p(row, single(params.top_p))),
        (params.min_p > 0.0, lambda row: kept_by_min_p(row, single(params.min_p))),
    )
    for applies, kept_by in stages:
        if applies:
            kept = kept_by(result)
            result = [logit if token in kept else HIDDEN for token, logit in enumerate(result)]
    return result
