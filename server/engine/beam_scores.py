"""What continuing a beam by a token adds to its total: log-probabilities after constraints and penalties, and which
tokens are worth considering. Knows no search."""

from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.sampling.constraints import constrain, is_constrained
from server.engine.sampling.likeliest import likeliest
from server.engine.sampling.order import PENALTIES, SAMPLERS
from server.engine.sampling.row import Row
from server.engine.sampling.stages import STAGES


def beam_scores(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Scores [rows, vocab] for logits [rows, vocab] float32, minus infinity where a token must not be chosen.

    Not normalised again. All rows have the same parameters.
    """
    scores = logits.log_softmax(-1)
    for score, row in zip(scores, rows, strict=True):
        if is_constrained(row):
            constrain(score, row)
    params = rows[0].params
    for name in params.samplers:
        if name in PENALTIES and SAMPLERS[name].applies(params):
            scores = STAGES[name](scores, rows)
    return scores


def candidates_of(scores: Tensor, endings: Tensor, count: int) -> list[tuple[int, float]]:
    """The `count` best (token, score) of a row [vocab], and the `count` best that are none of `endings` [endings].

    Those others must be there when the best ones end. However many tokens end a text, there are few candidates.
    """
    every = likeliest(scores, count), likeliest(scores.index_fill(-1, endings, -torch.inf), count)
    return list(dict(pair for tokens, values in every for pair in zip(tokens, values, strict=True)).items())
