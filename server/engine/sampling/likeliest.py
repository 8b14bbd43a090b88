"""Which tokens of a row are the best ones. Knows no parameters."""

import torch
from torch import Tensor


def likeliest(scores: Tensor, count: int) -> tuple[list[int], list[float]]:
    """The `count` best tokens of a row [vocab] and their scores, the best first, ties by lower id.

    Tokens with a score of minus infinity are not among them: there may be fewer than `count`.
    """
    count = min(count, len(scores))
    if not count:
        return [], []
    # topk says which scores are the best, but not in which order it finds equal ones.
    threshold = scores.topk(count).values[-1].clamp(min=torch.finfo(scores.dtype).min)
    candidates = (scores >= threshold).nonzero()[:, 0]
    ordered = scores[candidates].sort(descending=True, stable=True)
    return candidates[ordered.indices[:count]].tolist(), ordered.values[:count].tolist()
