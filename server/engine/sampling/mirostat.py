"""Mirostat 1 and 2 (Basu et al. 2021): cut candidates off so that the surprise of the choices meets a target.

Surprise is measured in bits, under the distribution that mirostat is given (after penalties and temperature, before
anything is cut off), as the paper's algorithms do; llama.cpp measures it after the cut.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from server.engine.filters import HIDDEN

# The paper's m: how many of the most likely tokens the exponent of Zipf's law is estimated from.
_NUM_ESTIMATED = 100


def keep_mirostat(logits: Tensor, version: int, mu: float) -> Tensor:
    """Algorithm 1 or 2 for one row [vocab]: keep the tokens that the greatest surprise `mu` allows, and the first."""
    return _keep_zipf(logits, mu) if version == 1 else _keep_unsurprising(logits, mu)


def surprise(logits: Tensor, token: int) -> float:
    """Of a token of a row [vocab], in bits."""
    return -float(logits.double().log_softmax(-1)[token]) / math.log(2)


def adjusted(mu: float, surprise: float, target: float, rate: float) -> float:
    """The greatest surprise for the next token, after one with that surprise was chosen."""
    return mu - rate * (surprise - target)


def zipf_exponent(logits: list[float]) -> float:
    """The least-squares estimate from the logits of the most likely tokens, descending (the paper's equation 30).

    Sum of t_i * b_i over sum of t_i squared, with t_i = log((i + 1) / i) and b_i = log(p_i / p_(i + 1)).
    """
    steps = [math.log((i + 2) / (i + 1)) for i in range(len(logits) - 1)]
    drops = [high - low for high, low in pairwise(logits)]
    return math.fsum(t * b for t, b in zip(steps, drops, strict=True)) / math.fsum(t * t for t in steps)


def zipf_top_k(exponent: float, mu: float, vocab_size: int) -> int:
    """k = (e * 2 ** mu / (1 - vocab_size ** -e)) ** (1 / exponent) with e = exponent - 1, rounded down, at least 1.

    In logarithms, so that no power overflows; where e is 0 its fraction has the limit 1 / log(vocab_size).
    """
    excess = exponent - 1.0
    size = math.log(vocab_size)
    if abs(excess) < 1e-9:
        fraction = 1.0 / size
    elif abs(excess) * size > 700:  # beyond this the power overflows a double, or is nothing beside 1
        fraction = excess if excess > 0 else 0.0
    else:
        fraction = excess / -math.expm1(-excess * size)
    if fraction <= 0.0:
        return 1
    log_k = (math.log(fraction) + mu * math.log(2)) / max(exponent, 1e-9)
    # The exponential of a whole number's logarithm may fall just short of it.
    return max(1, math.floor(math.exp(min(log_k, size)) + 1e-9))


def _keep_zipf(logits: Tensor, mu: float) -> Tensor:
    vocab_size = logits.shape[-1]
    ordered = logits.topk(min(_NUM_ESTIMATED, int((logits > HIDDEN).sum()))).values.double().tolist()
    if len(ordered) < 2:
        return logits
    k = min(vocab_size, zipf_top_k(zipf_exponent(ordered), mu, vocab_size))
    return logits.masked_fill(logits < logits.topk(k).values[-1], HIDDEN)


def _keep_unsurprising(logits: Tensor, mu: float) -> Tensor:
    logprobs = logits.double().log_softmax(-1)
    threshold = torch.minimum(logprobs.new_tensor(-mu * math.log(2)), logprobs.amax())
    return logits.masked_fill(logprobs < threshold, HIDDEN)
