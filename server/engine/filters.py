"""The stages between a model's logits and the choice of a token, as pure functions of rows. Knows no sequence.

Every stage works on each row alone and keeps ties together, so a row's result is a function of that row.
"""

import torch
from torch import Tensor

HIDDEN = float("-inf")


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Divide positive logits of seen tokens by the penalty and multiply negative ones (Keskar et al. 2019).

    logits [rows, vocab], seen [rows, vocab] bool (prompt and output), penalty [rows, 1].
    """
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalised, logits)


def penalise_counts(logits: Tensor, counts: Tensor, frequency: Tensor, presence: Tensor) -> Tensor:
    """OpenAI's penalties: subtract frequency times the count and presence once; counts [rows, vocab] of the output."""
    return logits - frequency * counts - presence * (counts > 0)


def keep_top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Keep the k largest logits of each row and whatever ties with the k-th; k [rows] (Fan et al. 2018)."""
    largest = logits.topk(int(k.max()), dim=-1).values
    threshold = largest.gather(-1, k[:, None] - 1)
    return logits.masked_fill(logits < threshold, HIDDEN)


def keep_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches p, and ties with its last; p [rows, 1]
    (nucleus sampling, Holtzman et al. 2020)."""
    ordered = logits.sort(dim=-1, descending=True).values
    cumulative = ordered.double().softmax(-1).cumsum(-1)
    # The first index where the sum reaches p; the last one if rounding keeps the sum below it.
    last = (cumulative < p).sum(-1, keepdim=True).clamp_max(logits.shape[-1] - 1)
    return logits.masked_fill(logits < ordered.gather(-1, last), HIDDEN)


def keep_min_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep tokens at least p times as likely as the most likely one; p [rows, 1] (Nguyen et al. 2024)."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + p.log(), HIDDEN)
